"""What runs the plugins."""

from itertools import count
from typing import List

from torch import nn

from .blocks import NATIVE, POSITIONS, Anchor
from .maps import apply_to_maps


def run_in_block(block: nn.Module, position: str, anchor: Anchor, name: str):
    """Let the block's child ``name`` run at one of its positions."""
    if anchor.child is NATIVE:
        if not block.with_plugins:
            block.with_plugins = True
            for each in POSITIONS:
                setattr(block, f'{each}_plugin_names', [])
        getattr(block, f'{position}_plugin_names').append(name)
        return
    if not hasattr(block, 'plugin_carriers'):
        block.plugin_carriers = {}
    if anchor not in block.plugin_carriers:
        block.plugin_carriers[anchor] = BlockCarrier(block, anchor)
    block.plugin_carriers[anchor].names.append(name)


def plugins_of_map(
    module: nn.Module,
    host: nn.Module,
    position: str,
    widths: List[int],
    index: int,
) -> nn.ModuleDict:
    """The plugins of a map that a module returns, made at the first one."""
    if not hasattr(host, position):
        host.add_module(position, nn.ModuleDict())
        module.register_forward_hook(MapCarrier(host, position, widths))
    maps = getattr(host, position)
    if str(index) not in maps:
        maps[str(index)] = nn.ModuleDict()
    return maps[str(index)]


class BlockCarrier:
    """Runs the plugins of one position of one block.

    Blocks and plugins outlive their neighbours: a runner replaces norm layers
    (SyncBN reverted or converted, convolution and BN fused) and wraps
    modules. So nothing is held but names, looked up at each call, and the
    hook on the child is put back, before the block runs, where the child has
    been replaced. Copies and pickles of the block hold a carrier of theirs.
    """

    def __init__(self, block: nn.Module, anchor: Anchor):
        self.block = block
        self.anchor = anchor
        self.names = []
        block.register_forward_pre_hook(self.attach)
        self.attach(block, ())

    def attach(self, block, args):
        child = getattr(block, self.anchor.child)
        if self.anchor.after:
            hooks, register = child._forward_hooks, child.register_forward_hook
        else:
            hooks = child._forward_pre_hooks
            register = child.register_forward_pre_hook
        if not any(hook is self for hook in hooks.values()):
            register(self)

    def __call__(self, child, args, output=None):
        x = output if self.anchor.after else args[0]
        if isinstance(x, list):  # TridentNet's branches
            return [self._run(branch) for branch in x]
        return self._run(x)

    def _run(self, x):
        for name in self.names:
            x = getattr(self.block, name)(x)
        return x


class MapCarrier:
    """Runs the plugins of the maps that a stage or a backbone returns.

    They are the children of ``host``, by position, index of the map and name.
    Maps of other widths than ``widths`` are returned in training alone.
    """

    def __init__(self, host: nn.Module, position: str, widths: List[int]):
        self.host = host
        self.position = position
        self.widths = widths

    def __call__(self, module, args, output):
        plugins = getattr(self.host, self.position)
        indices = count()

        def run(x):
            if x.shape[1] in self.widths:
                index = str(next(indices))
                if index in plugins:
                    for layer in plugins[index].values():
                        x = layer(x)
            return x

        return apply_to_maps(run, output)
