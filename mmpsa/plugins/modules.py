"""Tells modules apart: by the patterns of ``modules=``, and by kind."""

import re
from difflib import get_close_matches
from typing import Iterator, List, Tuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .validation import Entry, PluginsError


def named_modules(
    module: nn.Module, prefix: str = ''
) -> Iterator[Tuple[str, nn.Module]]:
    """The modules inside a module, by name, without plugins.

    A module with several names is yielded under each.
    """
    for name, child in module._modules.items():
        if not (child is None or getattr(child, 'is_plugin', False)):
            yield prefix + name, child
            yield from named_modules(child, f'{prefix}{name}.')


def is_called(module: nn.Module) -> bool:
    """Whether a module has a forward; lists of modules have none."""
    forward = vars(module).get('forward', type(module).forward)
    return forward is not nn.Module.forward


def is_container(module: nn.Module) -> bool:
    """Whether a module may run every child that it has."""
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def is_replaceable(module):
    """Whether a runner may replace it: a layer or a norm, also one of timm."""
    return isinstance(module, _BatchNorm) or not any(module.children())


def match_modules(root: nn.Module, entry: Entry) -> List[str]:
    """The names of the modules that an entry's patterns match, each once.

    Raises:
        PluginsError: If a pattern matches nothing, or only lists of modules.
    """
    modules = dict(named_modules(root))
    names = {}  # by the module, which may have several
    for pattern in entry.patterns:
        where = f"{entry.where}['modules']: {pattern!r}"
        try:
            matches = re.compile(_to_regex(pattern)).fullmatch
        except re.error as error:  # [3-1]
            raise PluginsError(
                f"{entry.where}['modules'] has the malformed pattern "
                f'{pattern!r}: {error}'
            ) from error
        matched = [name for name in modules if matches(name)]
        if not matched:
            like = get_close_matches(pattern, modules, 5, 0.5)
            raise PluginsError(
                f'{where} matches no module of this {type(root).__name__}; '
                + (
                    f'it has {enumerate_names(like or [*modules])}'
                    if modules
                    else 'it has no modules'
                )
            )
        called = [name for name in matched if is_called(modules[name])]
        if not called:
            raise PluginsError(
                f'{where} matches {enumerate_names(matched)}, a list of '
                'modules, which is never called; name its items: '
                f'{pattern + ".*"!r}'
            )
        for name in called:
            names.setdefault(modules[name], name)
    return [*names.values()]


def enumerate_names(names: List[str], limit: int = 8) -> str:
    """``'a, b and 3 more'``."""
    shown = ', '.join(names[:limit])
    more = len(names) - limit
    return f'{shown} and {more} more' if more > 0 else shown


def _to_regex(pattern):
    meanings = {'**.': r'(?:.+\.)?', '**': '.*', '*': '[^.]*', '?': '[^.]'}
    return ''.join(
        meanings.get(token) or (token if token[0] == '[' else re.escape(token))
        for token in re.findall(r'\*\*\.|\*\*|\[[^]]+\]|.', pattern)
    )
