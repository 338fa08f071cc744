"""Keeps the initialisation of plugins when the backbone is initialised."""

import copy
import logging

import torch
from mmengine.logging import print_log


def protect_initialisation(root, layers):
    """Let plugins keep their own initialisation in ``init_weights``.

    If ``root`` has been initialised already, this initialises the plugins.

    Args:
        root (nn.Module): The module that has the plugins.
        layers (list[nn.Module]): The plugins.
    """
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
    """An ``init_weights`` that keeps the initialisation of the plugins.

    A module's ``init_cfg`` initialises every convolution in the module, also
    those of the plugins. mmengine calls a plugin's own ``init_weights`` before
    that, or never, depending on the modules in between. This class restores
    the plugins' initialisation after the module's, and before a
    ``Pretrained`` checkpoint is loaded.
    """

    def __init__(self, root):
        self.root = root
        self.layers = []

    def __call__(self, *args, **kwargs):
        root = self.root
        upstream = getattr(type(root), 'init_weights', _nothing)
        if getattr(root, 'is_init', False):  # upstream warns, nothing else
            return upstream(root, *args, **kwargs)
        own = []
        for layer in self.layers:
            _initialise(layer)
            own.append((layer, copy.deepcopy(layer.state_dict())))

        def restore(*_):
            while own:
                layer, state_dict = own.pop()
                layer.load_state_dict(state_dict)
                _record(layer)

        def dump():
            restore()
            type(root)._dump_init_info(root)

        handle = root._register_load_state_dict_pre_hook(restore)
        # before other hooks, which may read the weights
        root._load_state_dict_pre_hooks.move_to_end(handle.id, last=False)
        # mmengine writes its log before this returns
        root._dump_init_info = dump
        try:
            upstream(root, *args, **kwargs)
        finally:
            handle.remove()
            del root._dump_init_info
        restore()


def _record(layer):
    """Tell mmengine's log of the initialisation who set the weights."""
    infos = getattr(layer, '_params_init_info', {})
    for parameter in layer.parameters():
        if parameter in infos:
            infos[parameter].update(
                init_info='Initialized by the plugin '
                f'{type(layer).__name__} itself ',
                tmp_mean_value=parameter.data.mean().cpu(),
            )


def _nothing(root):
    """Stands in for the ``init_weights`` of a module that has none."""


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


@torch.no_grad()
def is_identity(layer, in_channels):
    """Whether a plugin returns a test input unchanged.

    A copy runs, because the running statistics of norms would change.
    """
    x = torch.linspace(-1, 1, in_channels * 64).view(1, -1, 8, 8)
    x = x.to(next(layer.parameters(), x))
    try:
        return torch.equal(copy.deepcopy(layer).eval()(x), x)
    except (RuntimeError, ValueError):  # not on maps of this size
        return False
