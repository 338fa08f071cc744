"""Finds out how many channels the maps of a module have."""

from typing import Dict, List, Sequence, Tuple, Union

from torch import nn

from .modules import is_called, named_modules
from .probing import find_widths
from .validation import Entry, PluginsError


class WidthFinder:
    """Runs a network for its stages, and for every module, once each."""

    def __init__(self, root: nn.Module):
        self._root = root
        # What runs found, or how they failed, by the names asked for.
        self._runs: Dict[Tuple[str, ...], Union[dict, ValueError]] = {}

    def of_maps(self, stages: Sequence[List[str]], name: str) -> List[int]:
        """The channels of the maps of a stage, or of the network (``''``).

        Raises:
            ValueError: If the network does not run on pictures.
        """
        return self._run(('', *sum(stages, []))).get(name, [])

    def of_module(self, entry: Entry, name: str) -> int:
        """The channels of what a module returns.

        An attribute of the module has them, or the entry, or a run finds
        them.

        Raises:
            PluginsError: If they are not known, or if the entry says another
                number.
        """
        module = self._root.get_submodule(name)
        given = entry.cfg.get('in_channels')
        for attribute in ('out_channels', 'num_features', 'num_channels'):
            width = getattr(module, attribute, None)
            if isinstance(width, int):
                if given not in (None, width):
                    raise PluginsError(
                        f"{entry.where}['cfg']['in_channels'] is {given}, but "
                        f'{name} has {attribute}={width}'
                    )
                return width
        return int(given or self._probed(entry, name))

    def _probed(self, entry, name):
        """The width of a module's output, found by running the network."""
        where = f"{entry.where}['modules']: "
        unknown = f'{where}the width of {name} is not known'
        remedy = (
            'name another module, or, if it returns N×C×H×W maps, give its C: '
            f'cfg=dict(type={entry.cfg["type"]!r}, in_channels=64)'
        )
        if not getattr(self._root, 'plugin_positions', True):
            raise PluginsError(f'{unknown}; {remedy}')
        called = tuple(
            name
            for name, module in named_modules(self._root)
            if is_called(module)
        )
        try:
            widths = self._run(called).get(name, [])
        except ValueError as error:
            raise PluginsError(
                f'{unknown}: {error}; {remedy}'
            ) from error.__cause__
        if not widths:
            raise PluginsError(
                f'{unknown}: it returns no N×C×H×W map of fixed width where '
                f'{type(self._root).__name__} runs on pictures; {remedy}'
            )
        if len(widths) > 1:
            raise PluginsError(
                f'{where}{name} returns {len(widths)} N×C×H×W maps, a plugin '
                'takes one; name another module'
            )
        return widths[0]

    def _run(self, names):
        if names not in self._runs:
            try:
                self._runs[names] = find_widths(self._root, names)
            except ValueError as error:
                self._runs[names] = error
        found = self._runs[names]
        if isinstance(found, ValueError):
            raise found
        return found
