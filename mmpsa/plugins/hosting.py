"""Lets a module run plugins, which are its children: it is their host."""

from itertools import count
from operator import attrgetter

from torch import nn
from torch.fx import Proxy

from mmpsa.compatibility import is_compiling

from .blocks import CONV_POSITIONS
from .extension import Extension, extend
from .maps import apply_to_maps, check_shape, describe, is_map
from .modules import is_container
from .sites import Site
from .validation import AFTER_MODULE, AFTER_STAGE, OUTPUT

# Plugins on what a host returns run in this order.
_OUTWARDS = (AFTER_MODULE, AFTER_STAGE, OUTPUT)


def add_plugin(root: nn.Module, site: Site, name: str, layer: nn.Module):
    """Make a plugin the last at a site."""
    host = parent = root.get_submodule(site.host)
    for container in site.containers:
        if container not in parent._modules:
            # not a ModuleDict, which has names of its own, as 'values'
            _add_child(parent, container, nn.Module())
        parent = parent._modules[container]
    _add_child(parent, name, layer)
    if site.module is None:
        _let_upstream_run(host, site.position, name)
        return
    if not isinstance(host, Host):
        host.plugin_hooks = []
        extend(host, Host)
    for hook in host.plugin_hooks:
        if _place_of_hook(hook.site) == _place_of_hook(site):
            break
    else:
        hook = PluginHook(site)
        host.plugin_hooks.append(hook)
        host.plugin_hooks.sort(key=_order_of_hook)
    path = '.'.join((*site.containers, name))
    hook.names.setdefault(site.index, []).append(path)
    # Now, because torch.compile does not trace this at the first call.
    hook.follow(host)


def _add_child(module, name, layer):
    layer.is_plugin = True  # the patterns of modules= pass it over
    module.add_module(name, layer)


def _let_upstream_run(block, position, name):
    if not block.with_plugins:
        block.with_plugins = True
        for each in CONV_POSITIONS:
            setattr(block, f'{each}_plugin_names', [])
    getattr(block, f'{position}_plugin_names').append(name)


def _order_of_hook(hook):
    position = hook.site.position
    return _OUTWARDS.index(position) if position in _OUTWARDS else -1


def _place_of_hook(site):
    """What the sites of one hook have in common."""
    if site.position == AFTER_MODULE:
        return site.module, site.position, site.in_channels
    return site.module, site.after, site.module or site.position


class Host(Extension):
    """A module that runs plugins while it runs.

    Runners replace modules inside it (SyncBN, conv-bn fusion) and wrap them,
    and then the hooks on these are lost. So the host puts its hooks where
    they belong before it runs. It does this in its forward, and not in a hook
    on itself, because some heads call ``self.forward()``.
    """

    def __setattr__(self, name, value):
        # mmpose's RepVGGBlock gets another forward in switch_to_deploy
        if name == 'forward' and getattr(value, '__self__', None) is self:
            name = 'chosen_forward'
        super().__setattr__(name, value)

    def __setstate__(self, state):
        super().__setstate__(state)
        # A recursive pyramid runs its blocks by another method than forward.
        for hook in self.plugin_hooks:
            hook.follow(self)

    def forward(self, *args, **kwargs):
        if any(isinstance(arg, Proxy) for arg in args):
            raise RuntimeError(
                'torch.fx traces past plugins. Use torch.export or '
                "torch.compile, and leave out mmengine's "
                'efficient_conv_bn_eval'
            )
        for hook in self.plugin_hooks:
            hook.follow(self)
        output = self.chosen_or(super().forward)(*args, **kwargs)
        for hook in self.plugin_hooks:
            if not hook.site.module:
                output = hook.run(self, output)
        return output


class PluginHook:
    """Runs the plugins of one place: on what a module reads or returns.

    The hook does not hold the host, which would be a circle. Copies and
    pickles of the hook hold no plugins: the copied host, if there is one,
    gives them to the hook when it runs.
    """

    def __init__(self, site: Site):
        self.site = site
        self.names = {}  # of the plugins in the host, by the index of the map
        self.plugins = {}

    def __getstate__(self):
        return dict(vars(self), plugins={})

    def follow(self, host: nn.Module):
        """Find the plugins and the module anew, and stay on the module.

        Raises:
            RuntimeError: If the module was fused with the norm after it.
        """
        for index, names in self.names.items():
            plugins = [attrgetter(name)(host) for name in names]
            before = self.plugins.get(index, ())
            if len(plugins) != len(before) or any(
                a is not b for a, b in zip(plugins, before)
            ):
                self.plugins[index] = plugins
        if not self.site.module:
            return
        try:
            module = attrgetter(self.site.module)(host)
        except AttributeError:
            raise RuntimeError(
                f'{self.site.followed} is gone, but the plugin '
                f'{[*self.names.values()][0][0]} stands there; insert it '
                'at a module that stays'
            ) from None
        if not any(hook is self for hook in self._hooks_of(module).values()):
            # A wrapper has the module inside, with this hook.
            for inner in module.modules():
                hooks = self._hooks_of(inner)
                for key in [k for k, hook in hooks.items() if hook is self]:
                    del hooks[key]
            if self.site.after:
                module.register_forward_hook(self)
            else:
                module.register_forward_pre_hook(self, with_kwargs=True)
        norm = self.site.norm
        if norm and isinstance(attrgetter(norm)(host), nn.Identity):
            raise RuntimeError(
                f'{self.site.followed} has been fused with the norm after it, '
                f'but the plugin {self.names[None][0]} stands between them: '
                'do not fuse this model'
            )

    def _hooks_of(self, module):
        if self.site.after:
            return module._forward_hooks
        return module._forward_pre_hooks

    def __call__(self, module, args, last):
        """torch calls it; ``last`` is the output, or the kwargs before."""
        if not self.plugins:  # this is a copy without its host
            return None
        if self.site.after:
            return self.run(module, last)
        return self._run_on_first(module, args, last)

    def _run_on_first(self, module, args, kwargs):
        if args:
            return (self.run(module, args[0]), *args[1:]), kwargs
        first, x = next(iter(kwargs.items()))
        return args, dict(kwargs, **{first: self.run(module, x)})

    def run(self, module, output):
        """Run the plugins on each map, or on those with their index."""
        site = self.site
        if site.position == AFTER_MODULE:
            self._check_map(output)
        indices = count()

        def run(x):
            if site.widths and x.shape[1] not in site.widths:
                return x
            index = next(indices)
            for plugin in self.plugins.get(None, self.plugins.get(index, ())):
                x = _run(plugin, x, module)
            return x

        return apply_to_maps(run, output)

    def _check_map(self, output):
        width = self.site.in_channels
        if is_map(output) and output.shape[1] == width:
            return
        remedy = "name another module in the entry's modules="
        if is_map(output):
            remedy += f', or give cfg=dict(in_channels={output.shape[1]})'
        raise ValueError(
            f'{self.site.followed} returns {describe(output)}, but its plugin '
            f'{self.names[None][0]} was built for N×{width}×H×W maps; {remedy}'
        )


def _run(plugin, x, module):
    if is_container(module) and plugin.training != module.training:
        # The plugin is not in the container, but has its mode.
        plugin.train(module.training)
    output = plugin(x)
    check_shape(plugin, x, output)
    if is_compiling() or not _is_saved(output):
        return output
    # The block may add its residual to it in place.
    return output.clone()


def _is_saved(output):
    """Whether the backward of what computed a tensor needs the tensor."""
    node = output.grad_fn
    if hasattr(node, '_saved_result'):
        return True
    saved = getattr(node, 'saved_tensors', ())  # of Python's functions
    return any(
        tensor is not None and tensor.data_ptr() == output.data_ptr()
        for tensor in saved
    )
