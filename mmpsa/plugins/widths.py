"""Finds out how many channels the maps of a module have."""

from functools import cached_property
from typing import List, Sequence

from torch import nn

from .modules import is_called, named_modules
from .probing import find_widths
from .validation import Entry, PluginsError


class WidthFinder:
    """Runs a network at most once for its stages, and once for all modules.

    Args:
        root (nn.Module): The network.
        stages (Sequence[list[str]]): The names of the modules of its stages.
    """

    def __init__(self, root: nn.Module, stages: Sequence[List[str]]):
        self._root, self._stages = root, stages

    def of_maps(self, name: str) -> List[int]:
        """The channels of the maps of a stage, or of the network (``''``).

        Raises:
            ValueError: If the network does not run on pictures.
        """
        widths, error = self._in_stages
        if error:
            raise error
        return widths.get(name, [])

    def of_module(self, entry: Entry, name: str) -> int:
        """The channels of what a module returns.

        An attribute of the module has them, or the entry, or a run finds
        them. The entry may contradict the attribute of a module that has
        children: such an attribute may be of one branch.

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
                    if any(module.children()):
                        break  # a ShuffleUnit returns more than it says
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
        found, error = self._in_all
        if error:
            raise PluginsError(
                f'{unknown}: {error}; {remedy}'
            ) from error.__cause__
        widths = found.get(name, [])
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

    @cached_property
    def _in_stages(self):
        return self._run(['', *sum(self._stages, [])])

    @cached_property
    def _in_all(self):
        modules = named_modules(self._root)
        return self._run([name for name, m in modules if is_called(m)])

    def _run(self, names):
        """The widths by name, and None; or nothing, and why it failed."""
        try:
            return find_widths(self._root, names), None
        except ValueError as error:
            return {}, error
