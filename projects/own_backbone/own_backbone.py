"""A backbone of one's own, which takes plugins."""

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

import mmpsa


class Block(nn.Module):
    """Two 3×3 convolutions, norms and activations, and a residual."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x):
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


# The activation is called twice, so that the first position is not at its
# output but at the input of what reads it.
mmpsa.declare_block(
    Block,
    after_3x3=mmpsa.input_of('conv2'),
    after_conv1=mmpsa.input_of('conv2'),
    after_conv2='norm2',
)


@MODELS.register_module()
@mmpsa.pluggable
class OwnBackbone(BaseModule):
    """Stages of two blocks, each at half of the resolution before.

    Args:
        channels (tuple[int]): Of each stage.
        init_cfg (dict, optional): Initialization config dict.
    """

    def __init__(self, channels=(16, 32, 64), init_cfg=None):
        super().__init__(init_cfg)
        # ``stages`` is one of the names by which stages are known.
        self.stages = nn.ModuleList(
            nn.Sequential(Block(before, width, 2), Block(width, width, 1))
            for before, width in zip((3, *channels), channels)
        )

    def forward(self, x):
        outs = []
        for stage in self.stages:
            x = stage(x)
            outs.append(x)
        return tuple(outs)
