"""The positions in residual blocks."""

from typing import Dict, NamedTuple, Optional


class Anchor(NamedTuple):
    """Where a position lies in a block."""

    width: str  # the attribute that tells the plugin's in_channels
    child: Optional[str]  # the plugin runs at this child's input, or …
    after: bool = False  # … at its output; no child: see NATIVE


POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
# No child reads all of the position; the block has upstream's own plugins.
NATIVE = None
# After the last convolution and its norm comes the addition of the residual,
# before the other convolutions comes whatever reads their ReLU.
_BASIC_BLOCK = {
    'after_conv1': Anchor('conv1.out_channels', 'conv2'),
    'after_conv2': Anchor('conv2.out_channels', 'norm2', after=True),
}
_BOTTLENECK = {
    'after_conv1': Anchor('conv1.out_channels', 'conv2'),
    'after_conv2': Anchor('conv3.in_channels', 'conv3'),
    'after_conv3': Anchor('conv3.out_channels', 'norm3', after=True),
}
# conv2 is split into several, which read parts of conv1's output.
_BOTTLE2NECK = dict(
    _BOTTLENECK, after_conv1=Anchor('conv1.out_channels', NATIVE)
)
# mmpretrain's is not NATIVE: it has no plugins of its own.
_PLAIN_BOTTLE2NECK = {
    name: _BOTTLENECK[name] for name in ('after_conv2', 'after_conv3')
}
# Two branches that both read the block's input: conv1-k1 and conv2-scconv.
_SC_BOTTLENECK = {
    'after_conv1': Anchor('conv1.out_channels', 'k1'),
    'after_conv2': Anchor('conv2.out_channels', 'scconv'),
    'after_conv3': Anchor('conv3.out_channels', 'norm3', after=True),
}
# Convolution, norm and activation are one ConvModule.
_TWO_MODULES = {
    'after_conv1': Anchor('conv1.out_channels', 'conv1', after=True),
    'after_conv2': Anchor('conv2.out_channels', 'conv2', after=True),
}
_THREE_MODULES = {
    **_TWO_MODULES,
    'after_conv3': Anchor('conv3.out_channels', 'conv3', after=True),
}
# The second or both are depthwise separable; CSPLayer gives a
# DarknetBottleneck as many output channels as input channels.
_DARKNET_BLOCK = {
    'after_conv1': Anchor('conv1.out_channels', 'conv1', after=True),
    'after_conv2': Anchor('conv1.in_channels', 'conv2', after=True),
}
_CSPNEXT_BLOCK = {
    'after_conv1': Anchor(
        'conv2.depthwise_conv.in_channels', 'conv1', after=True
    ),
    'after_conv2': Anchor(
        'conv2.pointwise_conv.out_channels', 'conv2', after=True
    ),
}
# Its second convolution is a ladder of small ones, put together again.
_RSB = {
    'after_conv1': Anchor(
        'conv_bn_relu1.out_channels', 'conv_bn_relu1', after=True
    ),
    'after_conv2': Anchor('conv_bn3.in_channels', 'conv_bn3'),
    'after_conv3': Anchor('conv_bn3.out_channels', 'conv_bn3', after=True),
}
# By the class that defines the block's forward: subclasses that keep it are
# served, subclasses that read their layers in another order are not.
_BLOCKS = {
    'mmdet.models.backbones.darknet.ResBlock': _TWO_MODULES,
    'mmdet.models.backbones.efficientnet.EdgeResidual': _TWO_MODULES,
    'mmdet.models.backbones.res2net.Bottle2neck': _BOTTLE2NECK,
    'mmdet.models.backbones.resnest.Bottleneck': _BOTTLENECK,
    'mmdet.models.backbones.resnet.BasicBlock': _BASIC_BLOCK,
    'mmdet.models.backbones.resnet.Bottleneck': _BOTTLENECK,
    'mmdet.models.backbones.trident_resnet.TridentBottleneck': _BOTTLENECK,
    'mmdet.models.layers.csp_layer.CSPNeXtBlock': _CSPNEXT_BLOCK,
    'mmdet.models.layers.csp_layer.DarknetBottleneck': _DARKNET_BLOCK,
    'mmpose.models.backbones.resnest.Bottleneck': _BOTTLENECK,
    'mmpose.models.backbones.resnet.BasicBlock': _BASIC_BLOCK,
    'mmpose.models.backbones.resnet.Bottleneck': _BOTTLENECK,
    'mmpose.models.backbones.rsn.RSB': _RSB,
    'mmpose.models.backbones.scnet.SCBottleneck': _SC_BOTTLENECK,
    'mmpose.models.backbones.seresnet.SEBottleneck': _BOTTLENECK,
    'mmpose.models.backbones.vipnas_resnet.ViPNAS_Bottleneck': _BOTTLENECK,
    'mmpose.models.utils.csp_layer.CSPNeXtBlock': _CSPNEXT_BLOCK,
    'mmpose.models.utils.csp_layer.DarknetBottleneck': _DARKNET_BLOCK,
    'mmpretrain.models.backbones.cspnet.DarknetBottleneck': _TWO_MODULES,
    'mmpretrain.models.backbones.res2net.Bottle2neck': _PLAIN_BOTTLE2NECK,
    'mmpretrain.models.backbones.resnest.Bottleneck': _BOTTLENECK,
    'mmpretrain.models.backbones.resnet.BasicBlock': _BASIC_BLOCK,
    'mmpretrain.models.backbones.resnet.Bottleneck': _BOTTLENECK,
    'mmpretrain.models.backbones.seresnet.SEBottleneck': _BOTTLENECK,
    'mmseg.models.backbones.resnest.Bottleneck': _BOTTLENECK,
    'mmseg.models.backbones.resnet.BasicBlock': _BASIC_BLOCK,
    'mmseg.models.backbones.resnet.Bottleneck': _BOTTLENECK,
    'mmseg.models.utils.basic_block.BasicBlock': _TWO_MODULES,
    'mmseg.models.utils.basic_block.Bottleneck': _THREE_MODULES,
}


def positions_of(block) -> Dict[str, Anchor]:
    """The positions that a module has, by name; none if it is no block."""
    for cls in type(block).__mro__:
        if 'forward' in vars(cls):
            return _BLOCKS.get(f'{cls.__module__}.{cls.__qualname__}', {})
    return {}
