"""Where in a backbone plugins can stand."""

from functools import cached_property
from operator import attrgetter
from typing import List, Union

from torch import nn

from .blocks import POSITIONS as BLOCK_POSITIONS
from .blocks import positions_of
from .carrier import plugins_of_map, run_in_block
from .maps import find_widths
from .stages import find_stages

AFTER_STAGE, OUTPUT = 'after_stage', 'output'
POSITIONS = (*BLOCK_POSITIONS, AFTER_STAGE, OUTPUT)


def _is_frozen(module):
    return not any(p.requires_grad for p in module.parameters())


class BlockPlace:
    """A position of a residual block; the plugin is the block's child."""

    def __init__(self, path: str, block: nn.Module, position: str):
        self.path = path
        self.module = block
        self._position = position
        self._anchor = positions_of(block)[position]
        self.in_channels = attrgetter(self._anchor.width)(block)

    @property
    def frozen(self):
        return _is_frozen(self.module)

    def has(self, name):
        return hasattr(self.module, name)

    def add(self, name, layer):
        self.module.add_module(name, layer)
        run_in_block(self.module, self._position, self._anchor, name)


class MapPlace:
    """A map that a stage, or the backbone (``name`` is ''), returns.

    A stage's plugins are children of its last module that is no Sequential,
    which would run them.
    """

    def __init__(
        self,
        backbone: nn.Module,
        name: str,
        position: str,
        widths: List[int],
        index: int,
    ):
        self.module = backbone.get_submodule(name)
        self.in_channels = widths[index]
        self._host = self.module
        self._position = position
        self._widths = widths
        self._index = index
        while type(self._host).forward is nn.Sequential.forward:
            # not a single layer: runners replace norm layers
            inner = [
                (f'{name}.{child}', module)
                for child, module in self._host.named_children()
                if any(module.children())
            ]
            if not inner:
                raise ValueError(f'{name} is a Sequential of single layers')
            name, self._host = inner[-1]
        self.path = f'{name}.{position}.{index}'.lstrip('.')

    @property
    def frozen(self):
        """A frozen stage's are; those of the outputs stand in no stage."""
        return self._position == AFTER_STAGE and _is_frozen(self.module)

    def has(self, name):
        maps = getattr(self._host, self._position, {})
        return str(self._index) in maps and name in maps[str(self._index)]

    def add(self, name, layer):
        plugins_of_map(
            self.module,
            self._host,
            self._position,
            self._widths,
            self._index,
        ).add_module(name, layer)


Place = Union[BlockPlace, MapPlace]


class Places:
    """The places of a backbone, by position and stage."""

    def __init__(self, backbone: nn.Module):
        self._backbone = backbone
        self.stages = find_stages(backbone)

    def find(self, position: str) -> List[Union[List[Place], str]]:
        """For each stage (or output) its places, or why it has none.

        Raises:
            ValueError: If there are none at all.
        """
        if position == OUTPUT:
            places = self._maps([''], OUTPUT)
            found = [places] if isinstance(places, str) else [*zip(places)]
        elif position == AFTER_STAGE:
            found = [self._maps(names, position) for names in self.stages]
        else:
            found = [self._blocks(names, position) for names in self.stages]
        if all(isinstance(places, str) for places in found):
            name = type(self._backbone).__name__
            reason = found[0] if found else 'its stages are not known'
            raise ValueError(f'{name} takes no plugin {position}: {reason}')
        return found

    def _blocks(self, names, position):
        places = []
        for name in names:
            stage = self._backbone.get_submodule(name)
            for path, block in stage.named_modules(prefix=name):
                positions = positions_of(block)
                if positions and position not in positions:
                    return (
                        f'{path}, a {type(block).__name__}, has '
                        f'{" and ".join(positions)}'
                    )
                if positions:
                    places.append(BlockPlace(path, block, position))
        return places or f'{names[0]} has no residual blocks that are known'

    def _maps(self, names, position):
        if getattr(self._backbone, 'rfp_inplanes', None):
            return 'its blocks run one by one in a recursive feature pyramid'
        places = []
        for name in names:
            try:
                widths = self._widths.get(name)
                places += [
                    MapPlace(self._backbone, name, position, widths, i)
                    for i in range(len(widths or []))
                ]
            except ValueError as error:
                return str(error)
            if not widths:
                return f'{name or "it"} returns no N×C×H×W maps of fixed width'
        return places

    @cached_property
    def _widths(self):
        return find_widths(self._backbone, ['', *sum(self.stages, [])])
