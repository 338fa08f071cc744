"""Inserts plugins into a module that has been built.

The format is that of ``ResNet`` in mmseg and mmdet: a list of
``dict(cfg=dict(type=…), stages=(…), position='after_conv1')``. An entry may
have ``modules='…'`` instead of position and stages. The plugin becomes a child
of its block, so it has the same name in the checkpoint as in mmseg.
"""

import logging
from typing import Dict, List, NamedTuple, Sequence

from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import nn

from .building import build_plugin
from .hosting import add_plugin
from .identity import is_identity
from .initialisation import keep_start
from .sites import Site, SiteFinder, join
from .usage import watch
from .validation import AFTER_MODULE, Entry, PluginsError, validate

# what an attribute that is not there is; others may be None
_NONE = object()


class _Insertion(NamedTuple):
    """One plugin layer and where it goes."""

    entry: Entry
    site: Site
    name: str
    layer: nn.Module

    @property
    def path(self):
        return join(self.site.path, self.name)


def insert_plugins(module: nn.Module, plugins: Sequence[dict]) -> List[str]:
    """Insert plugins into a built backbone, neck or head.

    Plugins at one place run in the order of the list, each on the output of
    the one before; those of a position run before those of ``modules``. A
    plugin takes the device and the dtype of its block (stage, module), and is
    frozen if its block is. It keeps its own initialisation when the module's
    ``init_weights`` runs. A ``Pretrained`` checkpoint overwrites this
    initialisation if it has weights for the plugin.

    Args:
        module (nn.Module): A backbone, neck or head of mmpose, mmseg, mmdet
            or mmpretrain, or a module of your own. ``docs/backbones.md`` says
            which positions each backbone has. Necks and heads have none:
            name their modules.
        plugins (Sequence[dict]): Each with the keys

            - cfg (dict): The config of a registered plugin layer. It must
              have ``type``. If one kind of plugin occurs twice in a place, it
              needs ``postfix`` (str or int), which is appended to the
              plugin's name. Leave out ``in_channels``: the plugin gets the
              width of its place.
            - position (str): ``'after_3x3'``: in each block, after the first
              convolution whose kernel is larger than 1×1, its norm and its
              activation (the paper's place: conv1 of a BasicBlock, conv2 of
              a Bottleneck). ``'after_conv1'``, ``'after_conv2'`` or
              ``'after_conv3'``: in each block, after that convolution, its
              norm and its activation (after the last convolution of a block
              there is no activation). ``'after_stage'``: on each N×C×H×W map
              that a stage returns. ``'output'``: on each N×C×H×W map that
              the backbone returns.
            - identity_init (bool, optional): Start as the identity: the
              module computes at first what it computed without the plugin. A
              plugin that takes ``identity_init`` gets it. Any other, ``f``,
              becomes ``x + γ(f(x) - x)``, where γ is a parameter that starts
              at 0, unless it is the identity by itself. Default: False.
            - stages (Sequence[bool], optional): One flag for each stage, or
              for each map that the backbone returns. Default: all.
            - modules (str or Sequence[str]): Replaces ``position`` and
              ``stages``. The plugin runs on the N×C×H×W map of every module
              whose name in ``module`` matches. ``*`` stands for anything
              within one component of a dotted name, ``**`` for anything. If
              the error says that the width is not known, give it as
              ``cfg=dict(in_channels=…)``.

    Returns:
        list[str]: The names of the added modules, relative to ``module``.

    Raises:
        TypeError: If ``plugins`` or an entry has the wrong type.
        ValueError: If ``module`` is a whole model, if an entry has an
            unknown, missing or malformed key, if the backbone or a stage
            lacks the position, if a pattern matches nothing, if a width is
            not known, if a name is taken, or if a plugin cannot be built. The
            module is unchanged then.
        ImportError: If a plugin needs a package that is not installed.
    """
    if isinstance(module, BaseModel):
        raise PluginsError(
            f'{type(module).__name__} is a whole model; pass the part that '
            'the plugins go into, as in insert_plugins(model.backbone, …)'
        )
    entries = validate(plugins)
    added = _build_all(module, entries)
    for new in added:
        _fit(new, module)
        where = f'{new.path} in {type(module).__name__}'
        setattr(new.layer, 'plugin_path', where)
    for new in added:
        add_plugin(module, new.site, new.name, new.layer)
    keep_start(
        module,
        {new.path: new.site.in_channels for new in added},
        {
            join(new.site.formerly, new.name): new.path
            for new in added
            if new.site.formerly
        },
    )
    watch(module, {new.path: new.layer for new in added})
    _log(module, entries, added)
    return [new.path for new in added]


def _build_all(module, entries) -> List[_Insertion]:
    """Build the plugins of all sites; raises before anything is inserted."""
    finder = SiteFinder(module)
    places = [
        (entry, site) for entry in entries for site in finder.find(entry)
    ]
    # Sorted by position, as the keys of mmseg's own plugins are.
    places.sort(key=lambda place: _order_of(place[1].position))
    added: List[_Insertion] = []
    taken: Dict[tuple, str] = {}  # by whom
    for entry, site in places:
        name, layer = build_plugin(module, entry, site)
        new = _Insertion(entry, site, name, layer)
        # by the host itself, which may have several names
        host = module.get_submodule(site.host)
        path = id(host), (*site.containers, name)
        other = _attribute(host, path[1])
        if path in taken or other is not _NONE:
            by = taken.get(path) or f'a {type(other).__name__}'
            raise PluginsError(
                f"{entry.where}: the name '{name}' is taken in "
                f'{site.path} by {by}; give the plugin another postfix inside '
                "cfg, as in cfg=dict(type=…, postfix='1')"
            )
        taken[path] = entry.where
        added.append(new)
    return added


def _order_of(position):
    return (position == AFTER_MODULE, position)


def _attribute(module, names):
    for name in names:
        module = getattr(module, name, _NONE)
    return module


def _fit(new, module):
    """Give a plugin the dtype, device, mode and freezing of its place."""
    like = module.get_submodule(new.site.like)
    for parameter in (*like.parameters(), *module.parameters()):
        new.layer.to(parameter)
        break
    new.layer.train(like.training)
    if new.site.frozen:
        new.layer.requires_grad_(False)


def _log(module, entries, added):
    """Log what was inserted where, and warn of what will never learn."""
    title = type(module).__name__
    for entry in entries:
        mine = [new for new in added if new.entry is entry]
        if not mine:
            print_log(
                f"{entry.where}['stages'] are all False: nothing is inserted",
                logger='current',
                level=logging.WARNING,
            )
            continue
        num_params = sum(
            p.numel() for new in mine for p in new.layer.parameters()
        )
        where = (
            f'stages {entry.stages or "all"}'
            if entry.position
            else f'the first is {mine[0].path}'
        )
        print_log(
            f'{entry.where}: {len(mine)} × {entry.cfg["type"]} {entry} in '
            f'{title}, {where}, {num_params:,} parameters',
            logger='current',
        )
        stuck = [
            new.path
            for new in mine
            if new.site.frozen
            and not is_identity(new.layer, new.site.in_channels)
        ]
        if stuck:
            print_log(
                f'{entry.where}: {len(stuck)} of these plugins are in frozen '
                f'modules of {title} (the first is {stuck[0]}). They change '
                'the output of these modules, but are not trained. Leave '
                'these modules out, start the plugins as the identity, or '
                'load a checkpoint that has weights for the plugins',
                logger='current',
                level=logging.WARNING,
            )
