"""What runs the plugins of a block."""

from torch import nn

from .blocks import Anchor


def carrier_of(block, anchor):
    """The carrier of a position, made at the first plugin there."""
    if not hasattr(block, 'plugin_carriers'):
        block.plugin_carriers = {}
    if anchor not in block.plugin_carriers:
        block.plugin_carriers[anchor] = Carrier(block, anchor)
    return block.plugin_carriers[anchor]


class Carrier:
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
        for name in self.names:
            x = getattr(self.block, name)(x)
        return x
