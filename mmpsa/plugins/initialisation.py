"""Keeps the start of plugins when their module is initialised or loaded.

It renames the keys of older checkpoints, too.
"""

import logging
from contextlib import ExitStack, contextmanager, suppress

import mmengine.model  # noqa: F401 its weight initialisers
from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS

from .extension import Extension, extend
from .identity import is_identity
from .randomness import own_random_numbers


def keep_start(root, widths, renamed):
    """Let plugins keep their own initialisation in ``init_weights``.

    If ``root`` has been initialised already, this initialises the plugins.

    Args:
        root (nn.Module): The module that has the plugins.
        widths (dict[str, int]): ``in_channels`` of the plugins, by their
            names in ``root``.
        renamed (dict[str, str]): Names of plugins by those that they have in
            older checkpoints.
    """
    extend(root, Root)
    root.plugin_widths = {**vars(root).get('plugin_widths', {}), **widths}
    root.renamed_plugins = {
        **vars(root).get('renamed_plugins', {}),
        **renamed,
    }
    if getattr(root, 'is_init', False):
        for name in widths:
            _initialise(root, name)


def _initialise(root, name):
    layer = root.get_submodule(name)
    for method in ('init_weights', 'reset_parameters'):
        if hasattr(layer, method):
            with own_random_numbers(root, name):
                getattr(layer, method)()
            break


class Root(Extension):
    """A module with plugins in it, which keep their own initialisation.

    A module's ``init_cfg`` initialises every convolution in the module, and
    draws random numbers for each. So the plugins are out of the module while
    upstream initialises it. They are put back, and initialised, before a
    ``Pretrained`` checkpoint is loaded.
    """

    def init_weights(self, *args, **kwargs):
        upstream = getattr(super(), 'init_weights', lambda: None)
        if getattr(self, 'is_init', False):  # upstream warns, nothing else
            return upstream(*args, **kwargs)
        self.hidden_plugins = ExitStack()
        self.hidden_plugins.callback(self._initialise_plugins)
        self.hidden_plugins.enter_context(_without_plugins(_own_modules(self)))
        try:
            upstream(*args, **kwargs)
        finally:
            self._put_plugins_back()

    def _dump_init_info(self):  # mmengine's log of the initialisation
        self._put_plugins_back()
        super()._dump_init_info()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self._put_plugins_back()
        for old, new in self.renamed_plugins.items():
            for key in [
                k for k in state_dict if k.startswith(f'{prefix}{old}.')
            ]:
                moved = prefix + new + key[len(prefix + old) :]
                state_dict[moved] = state_dict.pop(key)
        self._report_missing(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _put_plugins_back(self):
        hidden = vars(self).pop('hidden_plugins', None)
        if hidden:
            hidden.close()

    def _initialise_plugins(self):
        # mmengine's record of who set which parameter. It has no entries for
        # plugins that were not there when it was made.
        infos = getattr(self, '_params_init_info', None)
        if infos is not None:
            for module in self.modules():
                module._params_init_info = infos
        for name, layer in self._plugins():
            _record(layer, infos)
            _initialise(self, name)
            _record(layer, infos)

    def _plugins(self):
        """The plugins by name, but for those whose host is gone."""
        for name in self.plugin_widths:
            with suppress(AttributeError):
                yield name, self.get_submodule(name)

    def _report_missing(self, state_dict, prefix):
        if not any(key.startswith(prefix) for key in state_dict):
            return
        missing = {
            name: layer
            for name, layer in self._plugins()
            if layer.state_dict()
            and not any(
                key.startswith(f'{prefix}{name}.') for key in state_dict
            )
        }
        if not missing:
            return
        identities = all(
            is_identity(layer, self.plugin_widths[name])
            for name, layer in missing.items()
        )
        print_log(
            f'The state dict has no weights for {len(missing)} plugins in '
            f'this {type(self).__name__} (the first is {[*missing][0]}): '
            'they start from their own initialisation, '
            + (
                'as the identity: the network computes the same as before'
                if identities
                else 'which is not the identity: the network computes '
                'something else than the one that was saved, until it is '
                'trained. identity_init=True in the entry avoids this'
            )
            + '. A checkpoint without plugins is a start, for load_from: its '
            'optimizer does not fit, so it cannot be resumed',
            logger='current',
            level=logging.INFO if identities else logging.WARNING,
        )


def _record(layer, infos):
    if infos is None:
        return
    for parameter in layer.parameters():
        infos[parameter].update(
            init_info=f'Initialized by the plugin {type(layer).__name__} '
            'itself ',
            tmp_mean_value=parameter.data.mean().cpu(),
        )


def _own_modules(root):
    """The modules in a root, but for those in roots of their own."""
    yield root
    for child in root.children():
        if not isinstance(child, Root):
            yield from _own_modules(child)


@contextmanager
def _without_plugins(hosts):
    """Take the plugins that are children of some modules out of them."""
    children = [(host, dict(host._modules)) for host in hosts]
    for host, modules in children:
        for name, module in modules.items():
            if getattr(module, 'is_plugin', False):
                host._modules.pop(name, None)  # a host may come twice
    try:
        yield
    finally:
        for host, modules in children:
            # The order is that of the state dict.
            modules.update(host._modules)
            host._modules.clear()
            host._modules.update(modules)


class _PastPlugins:
    """Runs a weight initialiser of mmengine while the plugins are out.

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
