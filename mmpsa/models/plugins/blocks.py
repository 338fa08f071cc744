"""Where plugins can stand: the residual blocks of a backbone."""

from typing import Dict, List, NamedTuple

from torch import nn


class Anchor(NamedTuple):
    """Where a position lies in a block."""

    conv: str  # its output channels are the plugin's in_channels
    child: str  # the plugin runs at this child's input, or …
    after: bool  # … at its output


# After the last convolution and its norm comes the addition of the residual,
# before the other convolutions comes whatever reads their ReLU.
_BASIC_BLOCK = {
    'after_conv1': Anchor('conv1', 'conv2', after=False),
    'after_conv2': Anchor('conv2', 'norm2', after=True),
}
_BOTTLENECK = {
    'after_conv1': Anchor('conv1', 'conv2', after=False),
    'after_conv2': Anchor('conv2', 'conv3', after=False),
    'after_conv3': Anchor('conv3', 'norm3', after=True),
}
# Two branches that both read the block's input: conv1-k1 and conv2-scconv.
_SC_BOTTLENECK = {
    'after_conv1': Anchor('conv1', 'k1', after=False),
    'after_conv2': Anchor('conv2', 'scconv', after=False),
    'after_conv3': Anchor('conv3', 'norm3', after=True),
}
# By the class that defines the block's forward: subclasses that keep it are
# served, subclasses that read their layers in another order are not.
_BLOCKS = {
    'mmpose.models.backbones.resnet.BasicBlock': _BASIC_BLOCK,
    'mmpose.models.backbones.resnet.Bottleneck': _BOTTLENECK,
    'mmpose.models.backbones.scnet.SCBottleneck': _SC_BOTTLENECK,
    'mmpose.models.backbones.seresnet.SEBottleneck': _BOTTLENECK,
    'mmseg.models.backbones.resnet.BasicBlock': _BASIC_BLOCK,
    'mmseg.models.backbones.resnet.Bottleneck': _BOTTLENECK,
}


def find_blocks(backbone) -> List[Dict[str, nn.Module]]:
    """The residual blocks of each stage, by name."""
    if hasattr(backbone, 'res_layers'):  # ResNet and its variants
        names = backbone.res_layers
    elif hasattr(backbone, 'stage4'):  # HRNet
        names = ['layer1', 'stage2', 'stage3', 'stage4']
    else:
        names = []
    stages = [
        {
            f'{stage}.{name}': module
            for name, module in getattr(backbone, stage).named_modules()
            if positions_of(module)
        }
        for stage in names
    ]
    if not all(stages) or not stages:
        raise ValueError(
            f'backbone {type(backbone).__name__} has no stages of residual '
            f'blocks that take plugins; the blocks that do are '
            f'{", ".join(_BLOCKS)}'
        )
    return stages


def positions_of(block) -> Dict[str, Anchor]:
    """The positions that a module has, by name; none if it is no block."""
    for cls in type(block).__mro__:
        if 'forward' in vars(cls):
            return _BLOCKS.get(f'{cls.__module__}.{cls.__qualname__}', {})
    return {}
