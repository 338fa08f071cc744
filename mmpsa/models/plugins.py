"""Plugins in the residual blocks of a backbone that has been built.

The format is mmseg's and mmdet's (``ResNet`` there): a list of
``dict(cfg=dict(type=…), stages=(…), position='after_conv1')``. The plugin is a
child of its block, so that its keys read as theirs, and runs from hooks, so
that the blocks stay upstream's.
"""

import copy
import logging
from typing import Dict, List, NamedTuple, Sequence

import torch
from mmcv.cnn import build_plugin_layer
from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import MODELS
from torch import nn


class _Anchor(NamedTuple):
    """Where a position lies in a block."""

    conv: str  # its output channels are the plugin's in_channels
    child: str  # the plugin runs at this child's input, or …
    after: bool  # … at its output


class _Insertion(NamedTuple):
    """One plugin layer and where it goes."""

    plugin: int  # index of its entry
    block: str
    anchor: _Anchor
    name: str
    layer: nn.Module
    in_channels: int


# After the last convolution and its norm comes the addition of the residual,
# before the other convolutions comes whatever reads their ReLU.
_BASIC_BLOCK = {
    'after_conv1': _Anchor('conv1', 'conv2', after=False),
    'after_conv2': _Anchor('conv2', 'norm2', after=True),
}
_BOTTLENECK = {
    'after_conv1': _Anchor('conv1', 'conv2', after=False),
    'after_conv2': _Anchor('conv2', 'conv3', after=False),
    'after_conv3': _Anchor('conv3', 'norm3', after=True),
}
# Two branches that both read the block's input: conv1-k1 and conv2-scconv.
_SC_BOTTLENECK = {
    'after_conv1': _Anchor('conv1', 'k1', after=False),
    'after_conv2': _Anchor('conv2', 'scconv', after=False),
    'after_conv3': _Anchor('conv3', 'norm3', after=True),
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
_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
_KEYS = ('cfg', 'stages', 'position')


def insert_plugins(backbone: nn.Module, plugins: Sequence[dict]) -> List[str]:
    """Insert plugins into the residual blocks of a built backbone.

    Plugins at one position run in the order of the list, each on the output
    of the one before. They move to the device and dtype of their block, are
    frozen where it is, and keep their own initialisation when the backbone's
    ``init_weights`` runs; a ``Pretrained`` checkpoint overwrites it where it
    holds their weights.

    Args:
        backbone (nn.Module): A ResNet or HRNet of mmpose or mmseg (or a
            subclass that keeps their blocks).
        plugins (Sequence[dict]): Each with the keys

            - cfg (dict): Config of any registered plugin layer. ``type`` is
              required; ``postfix`` (str or int) is appended to the plugin's
              name and needed where one kind occurs twice in a block. The
              plugin is built with the ``in_channels`` of its position.
            - position (str): ``'after_conv1'``, ``'after_conv2'`` or
              ``'after_conv3'``: after that convolution, its norm and, but
              for the block's last convolution, its ReLU.
            - stages (Sequence[bool], optional): One flag for each stage.
              HRNet has four, each with all of its branches. Default: all.

    Returns:
        list[str]: Names of the modules added, relative to ``backbone``.

    Raises:
        TypeError: If ``plugins`` or an entry has the wrong type.
        ValueError: If an entry has an unknown, missing or malformed key, a
            block lacks the position, a name is taken in a block, a plugin
            cannot be built, or the backbone has no residual blocks. The
            backbone is unchanged then.
    """
    _check_plugins(plugins)
    stages = _find_blocks(backbone)
    enabled = [
        _check_stages(plugin, len(stages), f'plugins[{i}]')
        for i, plugin in enumerate(plugins)
    ]

    added = []
    for s, blocks in enumerate(stages):
        chosen = [i for i in range(len(plugins)) if enabled[i][s]]
        for block_name, block in blocks.items():
            anchors = _anchors(block)
            for i in chosen:
                if plugins[i]['position'] not in anchors:
                    raise ValueError(
                        f"plugins[{i}]['position'] must be one of "
                        f'{tuple(anchors)} for {block_name}, a '
                        f'{type(block).__name__}; got '
                        f'{plugins[i]["position"]!r}'
                    )
            names = set()
            # Ordered by position first: the order of native keys.
            for i in sorted(chosen, key=lambda i: plugins[i]['position']):
                anchor = anchors[plugins[i]['position']]
                width = getattr(block, anchor.conv).out_channels
                name, layer = _build(plugins[i]['cfg'], width, i, block_name)
                if name in names or hasattr(block, name):
                    raise ValueError(
                        f"plugins[{i}]: the name '{name}' is taken in "
                        f'{block_name}; give the plugin another postfix '
                        "inside cfg, as in cfg=dict(type=…, postfix='1')"
                    )
                names.add(name)
                added.append(
                    _Insertion(i, block_name, anchor, name, layer, width)
                )

    blocks = {name: block for stage in stages for name, block in stage.items()}
    frozen = {
        name: not any(p.requires_grad for p in block.parameters())
        for name, block in blocks.items()
    }
    for new in added:
        block = blocks[new.block]
        new.layer.to(next(block.parameters())).train(block.training)
        if frozen[new.block]:
            new.layer.requires_grad_(False)
        block.add_module(new.name, new.layer)
        _carrier(block, new.anchor).names.append(new.name)
    _protect_initialisation(backbone, [new.layer for new in added])
    _log(backbone, plugins, added, frozen)
    return [f'{new.block}.{new.name}' for new in added]


def _check_plugins(plugins):
    if not isinstance(plugins, (list, tuple)):
        raise TypeError(
            f'plugins must be a list of dicts, got {type(plugins).__name__}'
        )
    for i, plugin in enumerate(plugins):
        where = f'plugins[{i}]'
        if not isinstance(plugin, dict):
            raise TypeError(
                f'{where} must be a dict, got {type(plugin).__name__}'
            )
        for key in plugin:
            if key not in _KEYS:
                hint = ''
                if key == 'postfix':
                    hint = ": it belongs inside cfg, cfg=dict(postfix='1', …)"
                raise ValueError(
                    f'{where} has the unknown key {key!r}{hint}; '
                    f'allowed are {_KEYS}'
                )
        for key in ('cfg', 'position'):
            if key not in plugin:
                raise ValueError(
                    f'{where} lacks the key {key!r}, got {dict(plugin)}'
                )
        cfg, position = plugin['cfg'], plugin['position']
        if not isinstance(cfg, dict):
            raise TypeError(
                f"{where}['cfg'] must be a dict, got {type(cfg).__name__}"
            )
        if 'type' not in cfg:
            raise ValueError(
                f"{where}['cfg'] lacks the key 'type', got {dict(cfg)}"
            )
        postfix = cfg.get('postfix', '')
        if not isinstance(postfix, (str, int)) or '.' in str(postfix):
            raise ValueError(
                f"{where}['cfg']['postfix'] must be a str without dots or "
                f'an int, got {postfix!r}'
            )
        if position not in _POSITIONS:
            raise ValueError(
                f"{where}['position'] must be one of {_POSITIONS}, "
                f'got {position!r}'
            )


def _check_stages(plugin, num_stages, where):
    stages = plugin.get('stages')
    if stages is None:
        return [True] * num_stages
    if (
        not isinstance(stages, (list, tuple))
        or len(stages) != num_stages
        or any(flag not in (True, False) for flag in stages)
    ):
        raise ValueError(
            f"{where}['stages'] must be {num_stages} booleans, one for each "
            f'stage of the backbone, got {stages!r}'
        )
    return stages


def _find_blocks(backbone) -> List[Dict[str, nn.Module]]:
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
            if _anchors(module)
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


def _anchors(block) -> Dict[str, _Anchor]:
    """The positions that a module has, by name."""
    for cls in type(block).__mro__:
        if 'forward' in vars(cls):
            return _BLOCKS.get(f'{cls.__module__}.{cls.__qualname__}', {})
    return {}


def _build(cfg, in_channels, i, block_name):
    """Build one plugin layer and its name."""
    cfg = copy.deepcopy(dict(cfg))
    postfix = cfg.pop('postfix', '')
    scope = cfg.pop('_scope_', None)
    try:
        with MODELS.switch_scope_and_registry(scope):
            return build_plugin_layer(
                cfg, postfix=postfix, in_channels=in_channels
            )
    except Exception as error:
        raise ValueError(
            f"plugins[{i}]['cfg'] cannot be built for {block_name} with "
            f'in_channels={in_channels}: {error} (got {dict(cfg)})'
        ) from error


def _carrier(block, anchor):
    """The carrier of a position, made at the first plugin there."""
    if not hasattr(block, 'plugin_carriers'):
        block.plugin_carriers = {}
    if anchor not in block.plugin_carriers:
        block.plugin_carriers[anchor] = _Carrier(block, anchor)
    return block.plugin_carriers[anchor]


class _Carrier:
    """Runs the plugins of one position of one block.

    Blocks and plugins outlive their neighbours: a runner replaces norm layers
    (SyncBN reverted or converted, convolution and BN fused) and wraps
    modules. So nothing is held but names, looked up at each call, and the
    hook on the child is put back, before the block runs, where the child has
    been replaced. Copies and pickles of the block hold a carrier of theirs.
    """

    def __init__(self, block: nn.Module, anchor: _Anchor):
        self.block = block
        self.anchor = anchor
        self.names = []
        block.register_forward_pre_hook(self.attach)
        self.attach(block, ())

    def attach(self, block, args):
        child = getattr(block, self.anchor.child)
        if self.anchor.after:
            hooks, register = child._forward_hooks, child.register_forward_hook
        else:
            hooks = child._forward_pre_hooks
            register = child.register_forward_pre_hook
        if not any(hook is self for hook in hooks.values()):
            register(self)

    def __call__(self, child, args, output=None):
        x = output if self.anchor.after else args[0]
        for name in self.names:
            x = getattr(self.block, name)(x)
        return x


def _protect_initialisation(backbone, layers):
    """Let plugins keep their own initialisation in ``init_weights``."""
    if getattr(backbone, 'is_init', False):
        for layer in layers:
            _initialise(layer)
        return
    if not isinstance(vars(backbone).get('init_weights'), _InitWeights):
        backbone.init_weights = _InitWeights(backbone)
    backbone.init_weights.layers.extend(layers)


def _initialise(layer):
    for method in ('init_weights', 'reset_parameters'):
        if hasattr(layer, method):
            return getattr(layer, method)()


class _InitWeights:
    """A backbone's ``init_weights`` that spares its plugins.

    The backbone's ``init_cfg`` would initialise every convolution in it, the
    plugins' too, and mmengine calls a plugin's own ``init_weights`` before or
    never, as the modules in between have it. Here the plugins' own comes back
    after the backbone's and before a ``Pretrained`` checkpoint.
    """

    def __init__(self, backbone):
        self.backbone = backbone
        self.layers = []

    def __call__(self):
        backbone = self.backbone
        if backbone.is_init:  # upstream warns and does nothing
            return type(backbone).init_weights(backbone)
        own = []
        for layer in self.layers:
            _initialise(layer)
            own.append((layer, copy.deepcopy(layer.state_dict())))

        def restore(*_):
            while own:
                layer, state_dict = own.pop()
                layer.load_state_dict(state_dict)
                if hasattr(layer, '_params_init_info'):
                    update_init_info(
                        layer,
                        init_info='Initialized by the plugin '
                        f'{type(layer).__name__} itself ',
                    )

        handle = backbone._register_load_state_dict_pre_hook(restore)
        try:
            type(backbone).init_weights(backbone)
        finally:
            handle.remove()
        restore()


def _log(backbone, plugins, added, frozen):
    """Say what was inserted where, and what will never learn."""
    backbone_name = type(backbone).__name__
    for i, plugin in enumerate(plugins):
        mine = [new for new in added if new.plugin == i]
        num_params = sum(
            p.numel() for new in mine for p in new.layer.parameters()
        )
        print_log(
            f'plugins[{i}]: {len(mine)} × {plugin["cfg"]["type"]} '
            f'{plugin["position"]} in {backbone_name}, stages '
            f'{plugin.get("stages", "all")}, {num_params:,} parameters',
            logger='current',
        )
        stuck = [
            f'{new.block}.{new.name}'
            for new in mine
            if frozen[new.block] and not _is_identity(new)
        ]
        if stuck:
            print_log(
                f'plugins[{i}]: {len(stuck)} of them stand in frozen stages '
                f'of {backbone_name} (the first is {stuck[0]}) and change '
                'what these compute, but will not be trained: leave these '
                'stages out, start the plugins as the identity, or load a '
                'checkpoint that has weights for them',
                logger='current',
                level=logging.WARNING,
            )


@torch.no_grad()
def _is_identity(new):
    """Whether a frozen plugin returns a test input unchanged."""
    x = torch.linspace(-1, 1, new.in_channels * 64).view(1, -1, 8, 8)
    x = x.to(next(new.layer.parameters(), x))
    return torch.equal(new.layer(x), x)
