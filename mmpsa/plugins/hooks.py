"""The hooks that run the plugins."""

from itertools import count
from operator import attrgetter
from typing import List

from torch import Tensor, nn
from torch.fx import Proxy

from .blocks import CONV_POSITIONS, Anchor
from .identity import check_shape, describe
from .probing import apply_to_maps, is_map


def is_container(module: nn.Module) -> bool:
    """Whether a module may run every child that it has."""
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def run_natively(block: nn.Module, position: str, name: str):
    """Let upstream's plugin code in a block run the block's child ``name``."""
    if not block.with_plugins:
        block.with_plugins = True
        for each in CONV_POSITIONS:
            setattr(block, f'{each}_plugin_names', [])
    getattr(block, f'{position}_plugin_names').append(name)


def run_in_block(block: nn.Module, anchor: Anchor, name: str):
    """Let the block's child ``name`` run at one of its positions."""
    hooks = _hooks_of(block)
    if anchor not in hooks:
        hooks[anchor] = BlockHook(block, anchor.child, anchor.after)
        # Not at the first call: torch.compile does not trace it.
        hooks[anchor].attach()
    hooks[anchor].names.append(name)


def run_after_module(
    host: nn.Module,
    module: str,
    name: str,
    path: str,
    in_channels: int,
    norm: str = '',
):
    """Let the host's descendant ``name`` run on what a module returns.

    Args:
        host (nn.Module): The module that has the plugin.
        module (str): The name of the module in ``host``; ``''`` is the host.
        name (str): The name of the plugin in ``host``.
        path (str): The name of the module in errors.
        in_channels (int): The width that the plugin was built for.
        norm (str): The name in ``host`` of the norm that conv-bn fusion would
            fuse with the module, past the plugin. Default: none.
    """
    if module:
        hooks = _hooks_of(host)
        if module not in hooks:
            hooks[module] = ModuleHook(host, module, path, norm)
            hooks[module].attach()
        hook = hooks[module]
    else:
        for hook in host._forward_hooks.values():
            if isinstance(hook, ModuleHook) and hook.host is host:
                break
        else:
            hook = ModuleHook(host, module, path, norm)
            host.register_forward_hook(hook)
    hook.names.append(name)
    hook.widths.append(in_channels)


def run_on_map(
    module: nn.Module, host: nn.Module, position: str, widths: List[int]
):
    """Let the plugins in ``host.position`` run on the maps of a module."""
    module.register_forward_hook(MapHook(host, position, widths))


def _hooks_of(host):
    if not isinstance(vars(host).get('forward'), Forward):
        host.forward = Forward(host)
    return host.forward.hooks


class Forward:
    """A host's ``forward`` that first puts back the hooks that were lost.

    A runner replaces norm layers (SyncBN reverted or converted, convolution
    and BN fused) and wraps modules, but hosts and plugins stay. So this class
    holds names, which it looks up at each call, and no modules. If a module
    inside the host was replaced, it gets its hook again. A hook on the host
    could not do this, because some heads call their ``forward`` themselves.
    Copies and pickles of the host have hooks of their own.
    """

    def __init__(self, host: nn.Module):
        self.host = host
        self.own = vars(host).get('forward')  # some choose one when built
        self.hooks = {}

    def __call__(self, *args, **kwargs):
        refuse_fx(args)
        for hook in self.hooks.values():
            hook.attach()
        if self.own is not None:
            return self.own(*args, **kwargs)
        return type(self.host).forward(self.host, *args, **kwargs)

    # Exporters read the names of the inputs, and the place of the code.
    @property
    def __wrapped__(self):
        return type(self.host).forward.__get__(self.host)

    @property
    def __code__(self):
        return type(self.host).forward.__code__


class BlockHook:
    """Runs plugins at the input or the output of a module in their host."""

    def __init__(self, host: nn.Module, module: str, after: bool):
        self.host = host
        self.module = module
        self.after = after
        self.names = []

    def attach(self):
        module = attrgetter(self.module)(self.host)
        if self.after:
            hooks = module._forward_hooks
            register = module.register_forward_hook
        else:
            hooks = module._forward_pre_hooks
            register = module.register_forward_pre_hook
        if not any(hook is self for hook in hooks.values()):
            register(self)

    def __call__(self, module, args, output=None):
        if self.is_replaced(module):
            return None
        if self.after:
            return self.run(output)
        return (self.run(args[0]), *args[1:])

    def is_replaced(self, module):
        """Whether ``module`` is inside another one now, which has the hook.

        A wrapper that takes its place in the host gets a hook of its own.
        """
        return module is not attrgetter(self.module)(self.host)

    def run(self, x):
        if isinstance(x, list):  # TridentNet's branches
            return [self.run(branch) for branch in x]
        for name in self.names:
            x = run_plugin(attrgetter(name)(self.host), x)
        return x


class ModuleHook(BlockHook):
    """Runs plugins on the N×C×H×W map that a module returns."""

    def __init__(self, host: nn.Module, module: str, path: str, norm: str):
        super().__init__(host, module, after=True)
        self.path = path
        self.norm = norm
        self.widths = []

    def attach(self):
        super().attach()
        if self.norm and isinstance(
            attrgetter(self.norm)(self.host), nn.Identity
        ):
            raise RuntimeError(
                f'{self.path} has been fused with the norm after it, but the '
                f'plugin {self.names[0]} stands between them: do not fuse '
                'this model'
            )

    def is_replaced(self, module):
        return bool(self.module) and super().is_replaced(module)

    def __call__(self, module, args, output):
        if self.is_replaced(module):
            return output
        for name, width in zip(self.names, self.widths):
            plugin = attrgetter(name)(self.host)
            if not is_map(output) or output.shape[1] != width:
                raise ValueError(
                    f'{self.path} returns {describe(output)}, but its plugin '
                    f'{name} was built for N×{width}×H×W maps; name another '
                    "module in the entry's modules="
                    + (
                        f', or give cfg=dict(in_channels={output.shape[1]})'
                        if is_map(output)
                        else ''
                    )
                )
            if is_container(module):
                # The plugin is not in the container, but has its mode.
                if plugin.training != module.training:
                    plugin.train(module.training)
            output = run_plugin(plugin, output)
        return output


def refuse_fx(values):
    """Refuse ``torch.fx.symbolic_trace``, which would leave plugins out.

    Raises:
        RuntimeError: If one of the values stands for one that is traced.
    """
    if any(isinstance(value, Proxy) for value in values):
        raise RuntimeError(
            'torch.fx traces past plugins. Use torch.export or torch.compile, '
            "and leave out mmengine's efficient_conv_bn_eval"
        )


def run_plugin(plugin: nn.Module, x: Tensor) -> Tensor:
    """Run a plugin on a map; its output must have the map's shape."""
    output = plugin(x)
    check_shape(plugin, x, output)
    return output


class MapHook:
    """Runs the plugins of the maps that a stage or a backbone returns.

    They are children of ``host``, under the position, the index of the map
    and their name. Maps of other widths than ``widths`` exist in training
    alone, and have no plugins.
    """

    def __init__(self, host: nn.Module, position: str, widths: List[int]):
        self.host = host
        self.position = position
        self.widths = widths

    def __call__(self, module, args, output):
        refuse_fx(output if isinstance(output, (list, tuple)) else [output])
        plugins = getattr(self.host, self.position)
        indices = count()

        def run(x):
            if x.shape[1] in self.widths:
                index = str(next(indices))
                if index in plugins:
                    for layer in plugins[index].values():
                        x = run_plugin(layer, x)
            return x

        return apply_to_maps(run, output)
