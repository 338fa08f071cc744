"""The entries of ``plugins=``, checked."""

import re

from .places import OUTPUT, POSITIONS

KEYS = ('cfg', 'stages', 'position')


class PluginsError(ValueError, AssertionError):
    """``plugins=`` that a backbone cannot take; upstream's own assert it."""


def check_plugins(plugins):
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
            if key not in KEYS:
                hint = ''
                if key == 'postfix':
                    hint = ": it belongs inside cfg, cfg=dict(postfix='1', …)"
                raise PluginsError(
                    f'{where} has the unknown key {key!r}{hint}; '
                    f'allowed are {KEYS}'
                )
        for key in ('cfg', 'position'):
            if key not in plugin:
                raise PluginsError(
                    f'{where} lacks the key {key!r}, got {dict(plugin)}'
                )
        cfg, position = plugin['cfg'], plugin['position']
        if not isinstance(cfg, dict):
            raise TypeError(
                f"{where}['cfg'] must be a dict, got {type(cfg).__name__}"
            )
        if 'type' not in cfg:
            raise PluginsError(
                f"{where}['cfg'] lacks the key 'type', got {dict(cfg)}"
            )
        kind, scope = cfg['type'], cfg.get('_scope_')
        if not isinstance(kind, (str, type)):
            raise TypeError(
                f"{where}['cfg']['type'] must be a registered name or a "
                f'class, got {kind!r}'
            )
        if not isinstance(scope, (str, type(None))):
            raise TypeError(
                f"{where}['cfg']['_scope_'] must be a str, got {scope!r}"
            )
        postfix = cfg.get('postfix', '')
        if (
            not isinstance(postfix, (str, int))
            or isinstance(postfix, bool)
            or not re.fullmatch(r'\w*', str(postfix))
        ):
            raise PluginsError(
                f"{where}['cfg']['postfix'] must be an int or a str of "
                f'letters, digits and underscores, got {postfix!r}'
            )
        if position not in POSITIONS:
            raise PluginsError(
                f"{where}['position'] must be one of {POSITIONS}, "
                f'got {position!r}'
            )


def check_stages(plugin, num_stages, where):
    stages = plugin.get('stages')
    of = 'output' if plugin['position'] == OUTPUT else 'stage'
    if stages is None:
        return [True] * num_stages
    if (
        not isinstance(stages, (list, tuple))
        or len(stages) != num_stages
        or any(not isinstance(flag, bool) for flag in stages)
    ):
        raise PluginsError(
            f"{where}['stages'] must be {num_stages} booleans, one for each "
            f'{of} of the backbone, got {stages!r}'
        )
    return stages
