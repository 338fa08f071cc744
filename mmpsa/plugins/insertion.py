"""Plugins in a backbone that has been built.

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

from .entries import PluginsError, check_plugins, check_stages
from .initialisation import protect_initialisation
from .places import Place, Places


class _Insertion(NamedTuple):
    """One plugin layer and where it goes."""

    plugin: int  # index of its entry
    place: Place
    name: str
    layer: nn.Module

    @property
    def path(self):
        return f'{self.place.path}.{self.name}'


def insert_plugins(backbone: nn.Module, plugins: Sequence[dict]) -> List[str]:
    """Insert plugins into a built backbone.

    Plugins at one position run in the order of the list, each on the output
    of the one before. They move to the device and dtype of their block (stage,
    backbone), are frozen where it is, and keep their own initialisation when
    the backbone's ``init_weights`` runs; a ``Pretrained`` checkpoint
    overwrites it where it holds their weights.

    Args:
        backbone (nn.Module): A backbone of mmpose, mmseg, mmdet or mmpretrain
            (or of the same make). ``docs/backbones.md`` says which positions
            each has.
        plugins (Sequence[dict]): Each with the keys

            - cfg (dict): Config of any registered plugin layer. ``type`` is
              required; ``postfix`` (str or int) is appended to the plugin's
              name and needed where one kind occurs twice in a block. The
              plugin is built with the ``in_channels`` of its position.
            - position (str): ``'after_conv1'``, ``'after_conv2'`` or
              ``'after_conv3'``: in each residual block after that
              convolution, its norm and, but for the block's last convolution,
              its activation. ``'after_stage'``: on each N×C×H×W map that a
              stage returns. ``'output'``: on each N×C×H×W map that the
              backbone returns.
            - stages (Sequence[bool], optional): One flag for each stage, or
              for each map that the backbone returns. Default: all.

    Returns:
        list[str]: Names of the modules added, relative to ``backbone``.

    Raises:
        TypeError: If ``plugins`` or an entry has the wrong type.
        ValueError: If an entry has an unknown, missing or malformed key, the
            backbone or a stage lacks the position, a name is taken, or a
            plugin cannot be built. The backbone is unchanged then.
    """
    check_plugins(plugins)
    added = _build_all(Places(backbone), plugins)
    frozen = []
    for new in added:
        module = new.place.module
        like = next(module.parameters(), next(backbone.parameters()))
        new.layer.to(like).train(module.training)
        if new.place.frozen:
            new.layer.requires_grad_(False)
            frozen.append(new)
    for new in added:
        new.place.add(new.name, new.layer)
    protect_initialisation(backbone, [new.layer for new in added])
    _log(backbone, plugins, added, frozen)
    return [new.path for new in added]


def _build_all(places, plugins) -> List[_Insertion]:
    """Build the plugins of all places; what is refused is refused here."""
    # By position first: the order that native keys have.
    order = sorted(range(len(plugins)), key=lambda i: plugins[i]['position'])
    added, paths = [], set()
    for i in order:
        where, position = f'plugins[{i}]', plugins[i]['position']
        try:
            stages = places.find(position)
        except ValueError as error:
            raise PluginsError(f"{where}['position']: {error}") from None
        flags = check_stages(plugins[i], len(stages), where)
        for n in (n for n, flag in enumerate(flags) if flag):
            if isinstance(stages[n], str):
                raise PluginsError(
                    f"{where}['stages'] has stage {n + 1} of {len(stages)}, "
                    f'which takes no plugin {position}: {stages[n]}'
                )
            for place in stages[n]:
                name, layer = _build(plugins[i]['cfg'], place, where)
                new = _Insertion(i, place, name, layer)
                if new.path in paths or place.has(name):
                    raise PluginsError(
                        f"{where}: the name '{name}' is taken in "
                        f'{place.path}; give the plugin another postfix '
                        "inside cfg, as in cfg=dict(type=…, postfix='1')"
                    )
                paths.add(new.path)
                added.append(new)
    return added


def _build(cfg, place, where):
    """Build one plugin layer and its name."""
    cfg = copy.deepcopy(dict(cfg))
    postfix = cfg.pop('postfix', '')
    scope = cfg.pop('_scope_', None)
    try:
        with MODELS.switch_scope_and_registry(scope):
            return build_plugin_layer(
                cfg, postfix=postfix, in_channels=place.in_channels
            )
    except Exception as error:
        raise PluginsError(
            f"{where}['cfg'] cannot be built for {place.path} with "
            f'in_channels={place.in_channels}: {error} (got {dict(cfg)})'
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
    x = torch.linspace(-1, 1, new.place.in_channels * 64).view(1, -1, 8, 8)
    x = x.to(next(new.layer.parameters(), x))
    return torch.equal(new.layer(x), x)
