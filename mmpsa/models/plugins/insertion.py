"""Plugins in the residual blocks of a backbone that has been built.

The format is mmseg's and mmdet's (``ResNet`` there): a list of
``dict(cfg=dict(type=…), stages=(…), position='after_conv1')``. The plugin is a
child of its block, so that its keys read as theirs, and runs from hooks, so
that the blocks stay upstream's.
"""

import copy
import logging
from typing import List, NamedTuple, Sequence

import torch
from mmcv.cnn import build_plugin_layer
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from .blocks import Anchor, find_blocks, positions_of
from .carrier import carrier_of
from .entries import check_plugins, check_stages
from .initialisation import protect_initialisation


class _Insertion(NamedTuple):
    """One plugin layer and where it goes."""

    plugin: int  # index of its entry
    block_name: str
    block: nn.Module
    anchor: Anchor
    name: str
    layer: nn.Module
    in_channels: int

    @property
    def path(self):
        return f'{self.block_name}.{self.name}'


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
    check_plugins(plugins)
    added = _build_all(find_blocks(backbone), plugins)
    frozen = []
    for new in added:
        new.layer.to(next(new.block.parameters())).train(new.block.training)
        if not any(p.requires_grad for p in new.block.parameters()):
            new.layer.requires_grad_(False)
            frozen.append(new)
        new.block.add_module(new.name, new.layer)
        carrier_of(new.block, new.anchor).names.append(new.name)
    protect_initialisation(backbone, [new.layer for new in added])
    _log(backbone, plugins, added, frozen)
    return [new.path for new in added]


def _build_all(stages, plugins) -> List[_Insertion]:
    """Build the plugins of all blocks; what is refused is refused here."""
    enabled = [
        check_stages(plugin, len(stages), f'plugins[{i}]')
        for i, plugin in enumerate(plugins)
    ]
    # By position first: the order that native keys have.
    order = sorted(range(len(plugins)), key=lambda i: plugins[i]['position'])
    added = []
    for s, blocks in enumerate(stages):
        for block_name, block in blocks.items():
            positions = positions_of(block)
            names = set()
            for i in (i for i in order if enabled[i][s]):
                position = plugins[i]['position']
                if position not in positions:
                    raise ValueError(
                        f"plugins[{i}]['position'] must be one of "
                        f'{tuple(positions)} for {block_name}, a '
                        f'{type(block).__name__}; got {position!r}'
                    )
                anchor = positions[position]
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
                    _Insertion(
                        i, block_name, block, anchor, name, layer, width
                    )
                )
    return added


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
            new.path
            for new in frozen
            if new.plugin == i and not _is_identity(new)
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
