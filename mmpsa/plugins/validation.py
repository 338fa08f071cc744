"""Checks the entries of ``plugins=``."""

import re
from typing import List, NamedTuple, Optional, Sequence, Tuple

from .blocks import BLOCK_POSITIONS

AFTER_STAGE, OUTPUT = 'after_stage', 'output'
POSITIONS = (*BLOCK_POSITIONS, AFTER_STAGE, OUTPUT)
KEYS = ('cfg', 'position', 'stages', 'modules', 'identity_init')


class PluginsError(ValueError, AssertionError):
    """A module cannot take these ``plugins=``.

    It is an AssertionError too, because upstream's own code asserts.
    """


class Entry(NamedTuple):
    """A well-formed entry; it has either a position or patterns."""

    where: str  # 'plugins[0]'
    cfg: dict
    position: Optional[str]
    stages: Optional[Sequence[bool]]
    patterns: Tuple[str, ...]
    identity_init: bool

    def __str__(self):
        """The place: ``"after_conv1"``, ``"after 'convs.*'"``."""
        return (
            self.position or f'after {" and ".join(map(repr, self.patterns))}'
        )


def validate(plugins) -> List[Entry]:
    """Check ``plugins`` and return its entries.

    Raises:
        TypeError: If ``plugins``, an entry, its ``cfg``, or the ``type`` or
            ``_scope_`` in it is of the wrong type.
        PluginsError: If a key of an entry is unknown or missing, or its value
            is not allowed.
    """
    if not isinstance(plugins, (list, tuple)):
        raise TypeError(
            f'plugins must be a list of dicts, got {type(plugins).__name__}'
        )
    return [
        _entry(f'plugins[{i}]', plugin) for i, plugin in enumerate(plugins)
    ]


def _entry(where, plugin):
    if not isinstance(plugin, dict):
        raise TypeError(f'{where} must be a dict, got {type(plugin).__name__}')
    for key in plugin:
        if key not in KEYS:
            raise PluginsError(
                f'{where} has the unknown key {key!r}; allowed are {KEYS}. '
                'The type of the plugin and its arguments belong inside cfg: '
                "cfg=dict(type='PSA', …)"
            )
    if 'cfg' not in plugin:
        raise PluginsError(f"{where} lacks the key 'cfg', got {dict(plugin)}")
    identity_init = plugin.get('identity_init', False)
    if not isinstance(identity_init, bool):
        raise PluginsError(
            f"{where}['identity_init'] must be a bool, got {identity_init!r}"
        )
    by_name = 'modules' in plugin
    _check_cfg(f"{where}['cfg']", plugin['cfg'], by_name)
    if by_name:
        for key in ('position', 'stages'):
            if key in plugin:
                raise PluginsError(
                    f"{where} has both 'modules' and {key!r}: an entry names "
                    'modules, or has a position and its stages; drop one, got '
                    f'{dict(plugin)}'
                )
        patterns = _patterns(f"{where}['modules']", plugin['modules'])
        return Entry(where, plugin['cfg'], None, None, patterns, identity_init)
    if 'position' not in plugin:
        raise PluginsError(
            f"{where} lacks the key 'position' (or 'modules'), got "
            f'{dict(plugin)}'
        )
    if plugin['position'] not in POSITIONS:
        raise PluginsError(
            f"{where}['position'] must be one of {POSITIONS}, "
            f'got {plugin["position"]!r}; other places are named by modules='
        )
    return Entry(
        where,
        plugin['cfg'],
        plugin['position'],
        plugin.get('stages'),
        (),
        identity_init,
    )


def _check_cfg(where, cfg, by_name):
    if not isinstance(cfg, dict):
        raise TypeError(f'{where} must be a dict, got {type(cfg).__name__}')
    if 'type' not in cfg:
        raise PluginsError(f"{where} lacks the key 'type', got {dict(cfg)}")
    kind, scope = cfg['type'], cfg.get('_scope_')
    if not isinstance(kind, (str, type)):
        raise TypeError(
            f"{where}['type'] must be a registered name or a class, "
            f'got {kind!r}'
        )
    if not isinstance(scope, (str, type(None))):
        raise TypeError(f"{where}['_scope_'] must be a str, got {scope!r}")
    postfix = cfg.get('postfix', '')
    if (
        not isinstance(postfix, (str, int))
        or isinstance(postfix, bool)
        or not re.fullmatch(r'\w*', str(postfix))
    ):
        raise PluginsError(
            f"{where}['postfix'] must be an int or a str of letters, digits "
            f'and underscores, got {postfix!r}'
        )
    if 'in_channels' not in cfg:
        return
    width = cfg['in_channels']
    if not by_name:
        raise PluginsError(
            f"{where}['in_channels']: a position has the width of its "
            f'convolution or map; leave it out, got {width!r}'
        )
    if type(width) is not int or width < 1:  # nor a bool
        raise PluginsError(
            f"{where}['in_channels'] must be a positive int, got {width!r}"
        )


def _patterns(where, modules) -> Tuple[str, ...]:
    patterns = [modules] if isinstance(modules, str) else modules
    if (
        not isinstance(patterns, (list, tuple))
        or not patterns
        or not all(isinstance(pattern, str) for pattern in patterns)
    ):
        raise TypeError(
            f"{where} must be a pattern such as 'fpn_convs.*', or a list of "
            f'them, got {modules!r}'
        )
    for pattern in patterns:
        if not all(
            re.fullmatch(r'([^][]|\[(\w(-\w)?)+\])+', part)
            for part in pattern.split('.')
        ):
            raise PluginsError(
                f'{where} has the malformed pattern {pattern!r}: write names '
                'separated by single dots; * stands for any characters but '
                'dots, ? for one of them, ** for any characters, [12] for 1 '
                'or 2'
            )
    return tuple(patterns)
