"""Where the positions of each kind of block are."""

from operator import attrgetter
from typing import Callable, Dict, NamedTuple, Optional, Union

from torch import nn

from .extension import plain_class


class Anchor(NamedTuple):
    """The place of a position in a block: the output or input of a module."""

    child: Optional[str]  # its dotted name in the block, or NATIVE
    after: bool = True  # at its output
    # The attribute of the block with the number of channels, for modules that
    # have no such attribute themselves.
    width: Optional[str] = None


def input_of(module: str) -> Anchor:
    """The position at the input of a block's module.

    Args:
        module (str): The name of the module in the block. It must have
            ``in_channels``.

    Returns:
        Anchor: What :func:`declare_block` takes.
    """
    return Anchor(module, after=False)


CONV_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
# The paper's place: after the first convolution of a block, in the order of
# its forward, whose kernel is larger than 1×1.
AFTER_3X3 = 'after_3x3'
BLOCK_POSITIONS = (*CONV_POSITIONS, AFTER_3X3)
Positions = Dict[str, Union[Anchor, Callable[[nn.Module], Anchor]]]
# No module reads all of the position; the block has upstream's own plugins.
NATIVE = None


def _positions(modules: str, first_3x3: Optional[int] = None) -> Positions:
    """The positions of a block, in one line.

    Args:
        modules (str): For each convolution, the module at whose output the
            position is, or ``<`` and the module at whose input it is. After a
            colon, what tells the width if the module does not. ``-``: no such
            position.
        first_3x3 (int, optional): The number of the first convolution that is
            larger than 1×1.
    """
    found: Positions = {}
    for position, text in zip(CONV_POSITIONS, modules.split()):
        child, _, width = text.partition(':')
        name = child.lstrip('<') or NATIVE
        if child != '-':
            found[position] = Anchor(name, '<' not in child, width or None)
    if first_3x3:
        found[AFTER_3X3] = found[CONV_POSITIONS[first_3x3 - 1]]
    return found


# The last position is the output of the last norm, before the residual is
# added. The other positions are the input of the next convolution: the block
# calls one ReLU several times, so they cannot be the output of the ReLU.
_BASIC_BLOCK = _positions(
    '<conv2:conv1.out_channels norm2:conv2.out_channels', 1
)
_BOTTLENECK = _positions(
    '<conv2:conv1.out_channels <conv3 norm3:conv3.out_channels', 2
)
# conv2 is split into several, which read parts of conv1's output.
_BOTTLE2NECK = _positions(
    '<:conv1.out_channels <conv3 norm3:conv3.out_channels', 2
)
# mmpretrain's is not NATIVE: it has no plugins of its own.
_PLAIN_BOTTLE2NECK = _positions('- <conv3 norm3:conv3.out_channels', 2)
# Two branches that both read the block's input: conv1-k1 and conv2-scconv. So
# neither of their 3×3 convolutions is the first.
_SC_BOTTLENECK = _positions(
    '<k1:conv1.out_channels <scconv:conv2.out_channels'
    ' norm3:conv3.out_channels'
)
# Convolution, norm and activation are one ConvModule. Of two, the first is
# 3×3 in some blocks, and 1×1 in others.
_TWO_3X3 = _positions('conv1 conv2', 1)
_1X1_AND_3X3 = _positions('conv1 conv2', 2)
_THREE_MODULES = _positions('conv1 conv2 conv3', 2)
# The second or both are depthwise separable; CSPLayer gives a
# DarknetBottleneck as many output channels as input channels.
_DARKNET = _positions('conv1 conv2:conv1.in_channels', 2)
_CSPNEXT = _positions(
    'conv1:conv2.depthwise_conv.in_channels'
    ' conv2:conv2.pointwise_conv.out_channels',
    1,
)
# Its second convolution is a ladder of small ones, put together again.
_RSB = _positions('conv_bn_relu1 <conv_bn3 conv_bn3', 2)
# Expansion, depthwise convolution (before the block's own attention) and
# projection; some have no expansion.
_INVERTED = _positions('expand_conv depthwise_conv linear_conv', 2)
_INVERTED_V2 = _positions('conv.-3 conv.-2 conv.-1', 2)
_SHUFFLE_V1 = _positions(
    'g_conv_1x1_compress depthwise_conv3x3_bn g_conv_1x1_expand', 2
)
# The other branch is there in the first unit of a stage alone.
_SHUFFLE_V2 = _positions('branch2.0 branch2.1 branch2.2', 2)
_UNET = _positions('convs.0 convs.1 convs.2', 1)
# With fusion_type='add', the first includes the block's downsampling.
_STDC = _positions('layers.0:layers.1.in_channels layers.1 layers.2')


def _first_3x3_of_stdc(block):
    if not block.with_downsample:
        return _STDC['after_conv2']
    if block.fusion_type == 'cat':
        return Anchor('downsample')  # 3×3, between the first two
    return _STDC['after_conv1']


_STDC[AFTER_3X3] = _first_3x3_of_stdc
_ALL = 'mmdet mmpose mmpretrain mmseg'
_BOTH = 'mmpose mmpretrain'
# The positions of the block whose class defines a forward, and the codebases
# that have it. Subclasses without a forward of their own have the same
# positions; other subclasses need their own line.
_BLOCKS = {
    f'{codebase}.models.{name}': positions
    for name, positions, codebases in (
        ('backbones.cspnet.DarknetBottleneck', _1X1_AND_3X3, 'mmpretrain'),
        ('backbones.darknet.ResBlock', _1X1_AND_3X3, 'mmdet'),
        ('backbones.efficientnet.EdgeResidual', _TWO_3X3, 'mmdet mmpretrain'),
        ('backbones.litehrnet.ShuffleUnit', _SHUFFLE_V2, 'mmpose'),
        ('backbones.mobilenet_v2.InvertedResidual', _INVERTED_V2, _BOTH),
        ('backbones.res2net.Bottle2neck', _BOTTLE2NECK, 'mmdet'),
        ('backbones.res2net.Bottle2neck', _PLAIN_BOTTLE2NECK, 'mmpretrain'),
        ('backbones.resnest.Bottleneck', _BOTTLENECK, _ALL),
        ('backbones.resnet.BasicBlock', _BASIC_BLOCK, _ALL),
        ('backbones.resnet.Bottleneck', _BOTTLENECK, _ALL),
        ('backbones.rsn.RSB', _RSB, 'mmpose'),
        ('backbones.scnet.SCBottleneck', _SC_BOTTLENECK, 'mmpose'),
        ('backbones.seresnet.SEBottleneck', _BOTTLENECK, _BOTH),
        ('backbones.shufflenet_v1.ShuffleUnit', _SHUFFLE_V1, _BOTH),
        ('backbones.shufflenet_v2.InvertedResidual', _SHUFFLE_V2, _BOTH),
        ('backbones.stdc.STDCModule', _STDC, 'mmseg'),
        ('backbones.trident_resnet.TridentBottleneck', _BOTTLENECK, 'mmdet'),
        ('backbones.unet.BasicConvBlock', _UNET, 'mmseg'),
        (
            'backbones.utils.inverted_residual.InvertedResidual',
            _INVERTED,
            'mmpose',
        ),
        ('backbones.vipnas_resnet.ViPNAS_Bottleneck', _BOTTLENECK, 'mmpose'),
        ('layers.csp_layer.CSPNeXtBlock', _CSPNEXT, 'mmdet'),
        ('layers.csp_layer.DarknetBottleneck', _DARKNET, 'mmdet'),
        ('layers.inverted_residual.InvertedResidual', _INVERTED, 'mmdet'),
        ('utils.basic_block.BasicBlock', _TWO_3X3, 'mmseg'),
        ('utils.basic_block.Bottleneck', _THREE_MODULES, 'mmseg'),
        ('utils.csp_layer.CSPNeXtBlock', _CSPNEXT, 'mmpose'),
        ('utils.csp_layer.DarknetBottleneck', _DARKNET, 'mmpose'),
        ('utils.inverted_residual.InvertedResidual', _INVERTED, 'mmpretrain'),
        ('utils.inverted_residual.InvertedResidual', _INVERTED_V2, 'mmseg'),
        ('utils.inverted_residual.InvertedResidualV3', _INVERTED, 'mmseg'),
    )
    for codebase in codebases.split()
}


def declare_block(block: type, **positions: Union[str, Anchor]) -> None:
    """Say where the positions of your own block are.

    After ``mmpsa.declare_block(MyBlock, after_conv1='conv1')``, ``plugins=``
    finds every ``MyBlock`` in the stages of a backbone, and every subclass
    that keeps its ``forward``. A block without a module of that name does not
    have the position.

    Args:
        block (type): The class of the block, a subclass of ``nn.Module``.
        positions: ``after_conv1``, ``after_conv2``, ``after_conv3`` or
            ``after_3x3``, one or more; the last is the first convolution
            whose kernel is larger than 1×1. Each value is the name of a
            module in the block: plugins read and replace its output, or its
            input if you give ``mmpsa.input_of(name)``. In a dotted name,
            ``-1`` is the last item of a Sequential. The forward must call the
            module once. The module must know its channels. Convolutions,
            norms and mmcv's ``ConvModule`` do, and so does a Sequential of
            them.

    Raises:
        TypeError: If ``block`` is not a module class, or a value is not a
            name.
        ValueError: If no position is given, or one that is not known.
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise TypeError(f'block must be a subclass of nn.Module, got {block}')
    if not positions or not {*positions} <= {*BLOCK_POSITIONS}:
        raise ValueError(
            f'positions of {block.__name__} must be some of '
            f'{BLOCK_POSITIONS}, got {tuple(positions)}'
        )
    anchors: Positions = {}
    for position, anchor in positions.items():
        if isinstance(anchor, str):
            anchor = Anchor(anchor)
        child = getattr(anchor, 'child', None)
        if not (isinstance(child, str) and child):
            raise TypeError(
                f"{position} of {block.__name__} must be a module's name or "
                f'input_of a name, got {positions[position]!r}'
            )
        anchors[position] = anchor
    _BLOCKS[_name_of(block)] = anchors


def positions_of(block: nn.Module) -> Dict[str, Anchor]:
    """The positions of a module, by name; empty if it is no block.

    ``after_3x3`` is the last. Its anchor may be that of another position.
    """
    found, declared = {}, _anchors_of(block)
    for position in BLOCK_POSITIONS:
        anchor = declared.get(position)
        if anchor is None:
            continue
        if callable(anchor):
            anchor = anchor(block)
        name = anchor.child
        if name is not NATIVE:
            name = _find(block, name)
        if name is not None or anchor.child is NATIVE:
            found[position] = anchor._replace(child=name)
    return found


def why_no_position(block: nn.Module, position: str) -> str:
    """Say why a module lacks a position; ``''`` if it is no block."""
    declared = _anchors_of(block)
    if not declared:
        return ''
    kind = type(block).__name__
    if position in declared:
        return f'has no module {declared[position].child!r} for {position}'
    found = ', '.join(positions_of(block))
    if position != AFTER_3X3:
        return f'has {found}'
    if declared is _SC_BOTTLENECK:
        return 'has two 3×3 convolutions side by side: none is the first'
    return (
        f'has {found}, and no {AFTER_3X3}; name the module of its first '
        'convolution larger than 1×1: '
        f"mmpsa.declare_block({kind}, {AFTER_3X3}='…')"
    )


def channels_at(block: nn.Module, anchor: Anchor) -> int:
    """The number of channels at a position of a block.

    Raises:
        ValueError: If the module at the position does not know it.
    """
    if anchor.width is not None:
        return attrgetter(anchor.width)(block)
    assert anchor.child is not None  # NATIVE comes with a width
    module = block.get_submodule(anchor.child)
    channels = _channels(module, anchor.after)
    if channels is None:
        raise ValueError(
            f'{anchor.child!r} of {type(block).__name__}, a '
            f'{type(module).__name__}, does not tell its number of channels: '
            'declare the position at a convolution, a norm or a ConvModule'
        )
    return channels


def _channels(module, after):
    names = ('in_channels', 'num_features', 'num_channels')
    if after:
        names = ('out_channels', *names[1:])
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    if isinstance(module, nn.Sequential):
        parts = [_channels(part, after) for part in module]
        known = [part for part in parts if part is not None]
        if known:
            return known[-1 if after else 0]
    return None


def _anchors_of(block):
    for cls in plain_class(block).__mro__:
        if _name_of(cls) in _BLOCKS:
            return _BLOCKS[_name_of(cls)]
        if 'forward' in vars(cls):
            break
    return {}


def _name_of(cls):
    return f'{cls.__module__}.{cls.__qualname__}'


def _find(block, path):
    """The name of a module in a block, without negative indices, or None."""
    module, names = block, []
    for name in path.split('.'):
        if name.startswith('-'):
            name = str(len(module) + int(name))
        module = getattr(module, name, None)
        if not isinstance(module, nn.Module):
            return None
        names.append(name)
    return '.'.join(names)
