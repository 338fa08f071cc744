"""Checks the entries of ``plugins=``."""

import re
from numbers import Integral
from typing import List, NamedTuple, Optional, Sequence, Tuple

from .blocks import BLOCK_POSITIONS

AFTER_STAGE, OUTPUT, AFTER_MODULE = 'after_stage', 'output', 'after_module'
POSITIONS = (*BLOCK_POSITIONS, AFTER_STAGE, OUTPUT)
KEYS = ('cfg', 'position', 'stages', 'modules', 'identity_init')


class PluginsError(ValueError, AssertionError):
    """A module cannot take these ``plugins=``.

    It is an AssertionError too, because upstream's own code asserts.
    """


class Entry(NamedTuple):
    """An entry. It has either a position, with stages, or patterns."""

    where: str  # 'plugins[0]'
    cfg: dict
    position: Optional[str]
    stages: Optional[Sequence[bool]]  # `flags` checks them
    patterns: Tuple[str, ...]
    identity_init: bool

    def flags(self, num_stages: int) -> Sequence[bool]:
        """One flag for each stage (or output).

        Raises:
            PluginsError: If the entry has another number of them.
        """
        if self.stages is None:
            return [True] * num_stages
        if (
            not isinstance(self.stages, (list, tuple))
            or len(self.stages) != num_stages
            or any(not isinstance(flag, bool) for flag in self.stages)
        ):
            of = 'output' if self.position == OUTPUT else 'stage'
            raise PluginsError(
                f"{self.where}['stages'] must be {num_stages} "
                f'boolean{"s" * (num_stages > 1)}, one for each {of} of the '
                f'backbone, got {self.stages!r}'
            )
        return self.stages

    def __str__(self):
        """The place: ``"after_conv1"``, ``"after 'convs.*'"``."""
        return (
            self.position or f'after {" and ".join(map(repr, self.patterns))}'
        )


def validate(plugins) -> List[Entry]:
    """Check ``plugins`` and return its entries.

    Raises:
        TypeError: If ``plugins``, an entry, its ``modules``, its ``cfg``, or
            the ``type`` or ``_scope_`` in that is of the wrong type.
        PluginsError: If a key of an entry is unknown or missing, or its value
            is not allowed.
    """
    _check('plugins', plugins, (list, tuple), 'a list of dicts')
    return [
        _entry(f'plugins[{i}]', plugin) for i, plugin in enumerate(plugins)
    ]


def _check(where, value, types, what):
    if not isinstance(value, types):
        raise TypeError(f'{where} must be {what}, got {type(value).__name__}')


def _entry(where, plugin):
    _check(where, plugin, dict, 'a dict')
    for key in plugin:
        if key not in KEYS:
            raise PluginsError(
                f'{where} has the unknown key {key!r}; allowed are {KEYS}. '
                'The type of the plugin and its arguments belong inside cfg: '
                "cfg=dict(type='PSA', …)"
            )
    place = 'modules' if 'modules' in plugin else 'position'
    for key in ('cfg', place):
        if key not in plugin:
            hint = '' if key == 'cfg' else " (or 'modules')"
            raise PluginsError(
                f'{where} lacks the key {key!r}{hint}, got {dict(plugin)}'
            )
    cfg, by_name = plugin['cfg'], place == 'modules'
    _check_cfg(f"{where}['cfg']", cfg, by_name)
    identity_init = plugin.get('identity_init', False)
    if not isinstance(identity_init, bool):
        raise PluginsError(
            f"{where}['identity_init'] must be a bool, got {identity_init!r}"
        )
    inside = cfg.get('identity_init', identity_init)
    if 'identity_init' in plugin and inside is not identity_init:
        raise PluginsError(
            f'{where} has identity_init={identity_init}, and cfg has '
            f'identity_init={inside!r}; drop one'
        )
    if not by_name:
        if plugin['position'] not in POSITIONS:
            raise PluginsError(
                f"{where}['position'] must be one of {POSITIONS}, got "
                f'{plugin["position"]!r}; other places are named by modules='
            )
        return Entry(
            where,
            cfg,
            plugin['position'],
            plugin.get('stages'),
            (),
            identity_init,
        )
    for key in ('position', 'stages'):
        if key in plugin:
            raise PluginsError(
                f"{where} has both 'modules' and {key!r}: an entry names "
                'modules, or has a position and its stages; drop one, got '
                f'{dict(plugin)}'
            )
    patterns = _patterns(f"{where}['modules']", plugin['modules'])
    return Entry(where, cfg, None, None, patterns, identity_init)


def _check_cfg(where, cfg, by_name):
    _check(where, cfg, dict, 'a dict')
    if 'type' not in cfg:
        raise PluginsError(f"{where} lacks the key 'type', got {dict(cfg)}")
    if not by_name and 'in_channels' in cfg:
        raise PluginsError(
            f"{where}['in_channels']: a position has the width of its "
            f'convolution or map; leave it out, got {cfg["in_channels"]!r}'
        )
    for key, error, allowed, what in (
        (
            'type',
            TypeError,
            lambda x: isinstance(x, (str, type)),
            'a registered name or a class',
        ),
        (
            '_scope_',
            TypeError,
            lambda x: isinstance(x, (str, type(None))),
            'a str',
        ),
        (
            'postfix',
            PluginsError,
            _is_postfix,
            'an int or a str of letters, digits and underscores',
        ),
        ('in_channels', PluginsError, is_width, 'a positive int'),
    ):
        if key in cfg and not allowed(cfg[key]):
            raise error(f'{where}[{key!r}] must be {what}, got {cfg[key]!r}')


def _is_postfix(value):
    return (
        isinstance(value, (str, int))
        and not isinstance(value, bool)
        and re.fullmatch(r'\w*', str(value))
    )


def is_width(value) -> bool:
    """Whether a value is a number of channels; numpy's integers are, too."""
    return (
        isinstance(value, Integral)
        and not isinstance(value, bool)
        and value > 0
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
