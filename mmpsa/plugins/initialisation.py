"""Plugins keep their own initialisation."""

import copy

from mmengine.model import update_init_info


def protect_initialisation(root, layers):
    """Let plugins keep their own initialisation in ``init_weights``."""
    if getattr(root, 'is_init', False):
        for layer in layers:
            _initialise(layer)
        return
    if not isinstance(vars(root).get('init_weights'), InitWeights):
        root.init_weights = InitWeights(root)
    root.init_weights.layers.extend(layers)


def _initialise(layer):
    for method in ('init_weights', 'reset_parameters'):
        if hasattr(layer, method):
            return getattr(layer, method)()


class InitWeights:
    """The ``init_weights`` of a module that spares the plugins in it.

    The module's ``init_cfg`` would initialise every convolution in it, the
    plugins' too, and mmengine calls a plugin's own ``init_weights`` before or
    never, as the modules in between have it. Here the plugins' own comes back
    after the module's and before a ``Pretrained`` checkpoint.
    """

    def __init__(self, root):
        self.root = root
        self.layers = []

    def __call__(self, *args, **kwargs):
        root = self.root
        upstream = getattr(type(root), 'init_weights', _nothing)
        if getattr(root, 'is_init', False):  # upstream warns and does nothing
            return upstream(root, *args, **kwargs)
        own = []
        for layer in self.layers:
            _initialise(layer)
            own.append((layer, copy.deepcopy(layer.state_dict())))

        def restore(*_):
            while own:
                layer, state_dict = own.pop()
                layer.load_state_dict(state_dict)
                if hasattr(layer, '_params_init_info'):
                    update_init_info(
                        layer,
                        init_info='Initialized by the plugin '
                        f'{type(layer).__name__} itself ',
                    )

        handle = root._register_load_state_dict_pre_hook(restore)
        try:
            upstream(root, *args, **kwargs)
        finally:
            handle.remove()
        restore()


def _nothing(root):
    """A module without ``init_weights``."""
