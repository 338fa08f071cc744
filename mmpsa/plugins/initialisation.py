"""Keeps the initialisation of plugins when the backbone is initialised."""

import logging
from contextlib import ExitStack, contextmanager

import mmengine.model  # noqa: F401 its weight initialisers
from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS

from .identity import is_identity
from .randomness import own_random_numbers


def protect_initialisation(root, layers):
    """Let plugins keep their own initialisation in ``init_weights``.

    If ``root`` has been initialised already, this initialises the plugins.

    Args:
        root (nn.Module): The module that has the plugins.
        layers (dict[str, nn.Module]): The plugins, by name in ``root``.
    """
    if getattr(root, 'is_init', False):
        for name, layer in layers.items():
            _initialise(root, name, layer)
        return
    if not isinstance(vars(root).get('init_weights'), InitWeights):
        root.init_weights = InitWeights(root)
    root.init_weights.layers.update(layers)


def _initialise(root, name, layer):
    for method in ('init_weights', 'reset_parameters'):
        if hasattr(layer, method):
            with own_random_numbers(root, name):
                getattr(layer, method)()
            break


class InitWeights:
    """An ``init_weights`` that keeps the initialisation of the plugins.

    A module's ``init_cfg`` initialises every convolution in the module, and
    draws random numbers for each. So this class takes the plugins out of the
    module while upstream initialises it. It puts them back, and initialises
    them, before a ``Pretrained`` checkpoint is loaded.
    """

    def __init__(self, root):
        self.root = root
        self.layers = {}

    def __call__(self, *args, **kwargs):
        root = self.root
        upstream = getattr(type(root), 'init_weights', _nothing)
        if getattr(root, 'is_init', False):  # upstream warns, nothing else
            return upstream(root, *args, **kwargs)

        hidden = ExitStack()
        hidden.callback(self._initialise)
        hidden.enter_context(_without_plugins(_own_modules(root)))

        def put_back(*_):
            hidden.close()

        def dump():
            hidden.close()
            type(root)._dump_init_info(root)

        handle = root._register_load_state_dict_pre_hook(put_back)
        # before other hooks, which may read the weights
        root._load_state_dict_pre_hooks.move_to_end(handle.id, last=False)
        # mmengine writes its log before this returns
        root._dump_init_info = dump
        try:
            upstream(root, *args, **kwargs)
        finally:
            hidden.close()
            handle.remove()
            del root._dump_init_info

    def _initialise(self):
        # mmengine's record of who set which parameter. It has no entries for
        # plugins that were not there when it was made.
        infos = getattr(self.root, '_params_init_info', None)
        if infos is not None:
            for module in self.root.modules():
                module._params_init_info = infos
        for name, layer in self.layers.items():
            _record(layer, infos)
            _initialise(self.root, name, layer)
            _record(layer, infos)


def _record(layer, infos):
    if infos is None:
        return
    for parameter in layer.parameters():
        infos[parameter].update(
            init_info=f'Initialized by the plugin {type(layer).__name__} '
            'itself ',
            tmp_mean_value=parameter.data.mean().cpu(),
        )


def _nothing(root):
    """Stands in for the ``init_weights`` of a module that has none."""


def _own_modules(root):
    """The modules in a root, but for those in roots of their own."""
    yield root
    for child in root.children():
        if not isinstance(vars(child).get('init_weights'), InitWeights):
            yield from _own_modules(child)


@contextmanager
def _without_plugins(hosts):
    """Take the plugins that are children of some modules out of them."""
    children = [(host, dict(host._modules)) for host in hosts]
    for host, modules in children:
        for name, module in modules.items():
            if getattr(module, 'is_plugin', False):
                del host._modules[name]
    try:
        yield
    finally:
        for host, modules in children:
            # The order is that of the state dict.
            modules.update(host._modules)
            host._modules.clear()
            host._modules.update(modules)


class _PastPlugins:
    """A weight initialiser of mmengine that plugins are not there for.

    A model's ``init_cfg`` is applied before its backbone's ``init_weights``.
    """

    def __call__(self, module):
        # not of the module itself: that may be a plugin with an init_cfg
        with _without_plugins([*module.modules()]):
            super().__call__(module)


for _name, _initialiser in dict(WEIGHT_INITIALIZERS.module_dict).items():
    if _name != 'Pretrained':
        WEIGHT_INITIALIZERS.register_module(
            name=_name,
            module=type(
                _initialiser.__name__, (_PastPlugins, _initialiser), {}
            ),
            force=True,
        )


def report_missing_weights(root, layers):
    """Log which plugins have no weights in a checkpoint that is loaded.

    Args:
        root (nn.Module): The module that has the plugins.
        layers (dict[str, int]): The ``in_channels`` of each plugin, by its
            name in ``root``.
    """
    for hook in root._load_state_dict_pre_hooks.values():
        hook = getattr(hook, 'hook', hook)
        if isinstance(hook, MissingWeights):
            hook.layers.update(layers)
            return
    root._register_load_state_dict_pre_hook(MissingWeights(root, layers))


class MissingWeights:
    """A hook that logs which plugins a state dict lacks."""

    def __init__(self, root, layers):
        self.root = root
        self.layers = layers

    def __call__(self, state_dict, prefix, *_):
        if not any(key.startswith(prefix) for key in state_dict):
            return
        missing = [
            name
            for name in self.layers
            if self.root.get_submodule(name).state_dict()
            and not any(
                key.startswith(f'{prefix}{name}.') for key in state_dict
            )
        ]
        if not missing:
            return
        identities = all(
            is_identity(self.root.get_submodule(name), self.layers[name])
            for name in missing
        )
        print_log(
            f'The state dict has no weights for {len(missing)} plugins in '
            f'this {type(self.root).__name__} (the first is {missing[0]}): '
            'they start from their own initialisation, '
            + (
                'as the identity: the network computes the same as before'
                if identities
                else 'which is not the identity: the network computes '
                'something else than the one that was saved, until it is '
                'trained. Plugins that can start as the identity avoid this: '
                'PSA with identity_init=True'
            ),
            logger='current',
            level=logging.INFO if identities else logging.WARNING,
        )
