"""Builds the plugin layers of entries."""

import copy
import inspect
import re
from contextlib import suppress
from difflib import get_close_matches
from typing import Tuple

from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from mmpsa import timm_attention
from mmpsa.compatibility import INSTALL_MMCV

from .identity import is_identity, start_as_identity
from .randomness import own_random_numbers
from .sites import Site, join
from .validation import Entry, PluginsError

# What a wrong cfg raises. Any other exception is a mistake in the plugin's
# code, and is not caught.
_REFUSALS = (AssertionError, KeyError, TypeError, ValueError)


def build_plugin(
    root: nn.Module, entry: Entry, site: Site
) -> Tuple[str, nn.Module]:
    """Build the plugin of an entry for a site, and its name there.

    The name is mmcv's: ``_abbr_`` of the class, or its name in snake case,
    and the postfix.

    Raises:
        PluginsError: If there is no such type, or if it cannot be built.
    """
    with suppress(ModuleNotFoundError):
        import mmcv.cnn  # noqa: F401 registers its plugins
    cfg = copy.deepcopy(dict(entry.cfg))
    kind, postfix = cfg.pop('type'), cfg.pop('postfix', '')
    cfg['in_channels'] = site.in_channels
    with MODELS.switch_scope_and_registry(
        cfg.pop('_scope_', None)
    ) as registry:
        cls = _class_of(entry, kind, registry)
        _pass_identity_init(entry, cls, cfg)
        abbr = getattr(cls, '_abbr_', None) or _snake_case(cls.__name__)
        name = f'{abbr}{postfix}'
        try:
            with own_random_numbers(root, join(site.path, name)):
                layer = cls(**cfg)
        except _REFUSALS as error:
            raise PluginsError(
                f"{entry.where}['cfg'] cannot be built for {site.path} with "
                f'in_channels={site.in_channels}: {error} '
                f'(got {dict(entry.cfg)}){_arguments(cls, cfg)}'
            ) from error
    if (
        entry.identity_init
        and 'identity_init' not in cfg
        and not is_identity(layer, site.in_channels)
    ):
        start_as_identity(layer, site.in_channels)
    return name, layer


def _snake_case(name):
    name = re.sub(r'([A-Z]+)([A-Z][a-z])', r'\1_\2', name)
    return re.sub(r'([a-z\d])([A-Z])', r'\1_\2', name).lower()


def _class_of(entry, kind, registry):
    cls = kind
    if isinstance(kind, str):
        try:
            cls = registry.get(kind)
        except Exception as error:  # what a path in a name leads to
            raise PluginsError(
                f"{entry.where}['cfg'] cannot be built from type={kind!r}: "
                f'{error}'
            ) from error
    if cls is None:
        raise PluginsError(
            f"{entry.where}['cfg'] cannot be built from type={kind!r}, "
            f'which is not registered under the scope {registry.scope!r}'
            + _where_else(kind, registry)
        )
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise PluginsError(
            f"{entry.where}['cfg']['type'] must be a class of modules or its "
            f'name, got {kind!r}, which is {cls!r}'
        )
    if hasattr(cls, 'plugin_positions') or issubclass(cls, BaseModel):
        raise PluginsError(
            f"{entry.where}['cfg']['type'] must be a plugin, a layer that "
            f'returns a map of the shape that it reads; {cls.__name__} is a '
            'network that takes plugins itself'
        )
    return cls


def _where_else(kind, registry):
    """Say where a type is registered, or what has a name like it."""
    others = [
        child.scope
        for child in MODELS.children.values()
        if kind in child.module_dict
    ]
    if others:
        return (
            f'; it is in the registry of {" and ".join(others)}: write '
            f'cfg=dict(type={kind!r}, _scope_={others[0]!r})'
        )
    names = {}  # by what is compared
    while registry is not None:
        names.update({name.lower(): name for name in registry.module_dict})
        registry = registry.parent
    like = [
        names[name] for name in get_close_matches(kind.lower(), names, 5, 0.7)
    ]
    if kind.startswith(timm_attention.PREFIX):
        like = [timm_attention.PREFIX + x for x in timm_attention.SERVED]
    missing = ''
    try:
        import mmcv  # noqa: F401
    except ModuleNotFoundError:
        missing = f". mmcv's plugins need mmcv: {INSTALL_MMCV}"
    return (
        f'; names like it: {", ".join(like) or "none"}. A plugin of your own '
        'is registered when its module is imported: '
        f"custom_imports = dict(imports=['my_module']){missing}"
    )


def _pass_identity_init(entry, cls, cfg):
    """Give ``identity_init`` of an entry to a plugin that takes it."""
    if (
        entry.identity_init
        and 'identity_init' in inspect.signature(cls).parameters
    ):
        cfg['identity_init'] = True


def _arguments(cls, cfg):
    """What a plugin takes, if a cfg has something else; otherwise ''."""
    known = inspect.signature(cls).parameters
    if {*cfg} <= {*known} or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()
    ):
        return ''
    if 'in_channels' not in known:
        return (
            f'. {cls.__name__} must take in_channels; mmpsa passes the width '
            'of its place there'
        )
    allowed = [name for name in known if name != 'in_channels']
    return f'. {cls.__name__} takes {", ".join(allowed) or "nothing else"}'
