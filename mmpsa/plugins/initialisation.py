"""Plugins keep their own initialisation."""

import copy

from mmengine.model import update_init_info


def protect_initialisation(backbone, layers):
    """Let plugins keep their own initialisation in ``init_weights``."""
    if getattr(backbone, 'is_init', False):
        for layer in layers:
            _initialise(layer)
        return
    if not isinstance(vars(backbone).get('init_weights'), InitWeights):
        backbone.init_weights = InitWeights(backbone)
    backbone.init_weights.layers.extend(layers)


def _initialise(layer):
    for method in ('init_weights', 'reset_parameters'):
        if hasattr(layer, method):
            return getattr(layer, method)()


class InitWeights:
    """A backbone's ``init_weights`` that spares its plugins.

    The backbone's ``init_cfg`` would initialise every convolution in it, the
    plugins' too, and mmengine calls a plugin's own ``init_weights`` before or
    never, as the modules in between have it. Here the plugins' own comes back
    after the backbone's and before a ``Pretrained`` checkpoint.
    """

    def __init__(self, backbone):
        self.backbone = backbone
        self.layers = []

    def __call__(self):
        backbone = self.backbone
        if backbone.is_init:  # upstream warns and does nothing
            return type(backbone).init_weights(backbone)
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

        handle = backbone._register_load_state_dict_pre_hook(restore)
        try:
            type(backbone).init_weights(backbone)
        finally:
            handle.remove()
        restore()
