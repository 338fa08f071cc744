"""A light feature pyramid, whose path attention can stand in."""

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn
from torch.nn.functional import interpolate

from .plugins import pluggable


@MODELS.register_module()
@pluggable
class LightFPN(BaseModule):
    """A feature pyramid where each level reads the finished coarser one.

    At each level: a 1×1 convolution of the backbone's map, plus the coarser
    level's output, then a depthwise 3×3 and a 1×1 convolution, norm and ReLU.
    In upstream's FPN, levels are added up before ``fpn_convs``, and only the
    head reads what stands behind them. Here, a plugin with
    ``modules='fpn_convs.*'`` is in the path of all finer levels.

    Args:
        in_channels (list[int]): Channels of the backbone's maps, the finest
            map first.
        out_channels (int): Channels of all outputs.
        separable (bool): Whether a depthwise 3×3 and a 1×1 convolution stand
            in place of a dense 3×3 convolution. Default: True.
        norm_cfg (dict): Norm of each level. Default: ``dict(type='BN')``.
        init_cfg (dict, optional): Initialization config dict. Default: None.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        separable=True,
        norm_cfg=dict(type='BN'),
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.lateral_convs = nn.ModuleList(
            nn.Conv2d(channels, out_channels, 1) for channels in in_channels
        )
        self.depthwise_convs = nn.ModuleList(
            nn.Conv2d(
                out_channels,
                out_channels,
                3,
                padding=1,
                groups=out_channels,
                bias=False,
            )
            if separable
            else nn.Identity()
            for _ in in_channels
        )
        size = 1 if separable else 3
        self.fpn_convs = nn.ModuleList(
            ConvModule(
                out_channels,
                out_channels,
                size,
                padding=size // 2,
                norm_cfg=norm_cfg,
            )
            for _ in in_channels
        )

    def forward(self, inputs):
        """From the maps of a backbone to as many maps of one width.

        Args:
            inputs (tuple[Tensor]): N×C×H×W each, the finest first.

        Returns:
            tuple[Tensor]: N×``out_channels``×H×W each, in the same order.
        """
        outs = []
        for i in reversed(range(len(inputs))):
            x = self.lateral_convs[i](inputs[i])
            if outs:
                x = x + interpolate(outs[0], size=x.shape[2:])
            outs.insert(0, self.fpn_convs[i](self.depthwise_convs[i](x)))
        return tuple(outs)
