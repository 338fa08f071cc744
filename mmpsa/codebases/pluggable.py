"""Upstream backbones with ``plugins=``, under upstream's own names."""

import logging
from importlib import import_module
from typing import Dict, Optional, Sequence

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import Registry

from mmpsa.plugins import insert_plugins
from mmpsa.psa import SIGNATURES


class PluggableBackbone:
    """Mixin that adds ``plugins=`` to a backbone; without it, changes nothing.

    Args:
        plugins (Sequence[dict], optional): See
            :func:`mmpsa.insert_plugins`. Default: None.
        args, kwargs: As upstream's.
    """

    def __init__(
        self, *args, plugins: Optional[Sequence[dict]] = None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        if plugins is not None:
            insert_plugins(self, plugins)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self._warn_of_unused_psa(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _warn_of_unused_psa(self, state_dict, prefix):
        modules = dict(self.named_modules())
        unused = sorted(
            {
                key[len(prefix) : -len(end) - 1]
                for key in state_dict
                for end in SIGNATURES
                if key.startswith(prefix) and key.endswith(f'.{end}')
            }
            - set(modules)
        )
        if unused:
            print_log(
                f'The state dict has Polarized Self-Attention weights for '
                f'{len(unused)} places where this {type(self).__name__} has '
                f'none (the first is {unused[0]}). They are not loaded: the '
                'model computes something else than the one that was saved. '
                'Give the backbone the plugins= that it was trained with.',
                logger='current',
                level=logging.WARNING,
            )


def pluggable(registry: Registry, module: str) -> Dict[str, type]:
    """Subclass a codebase's backbones and register them in their stead.

    Args:
        registry (Registry): The codebase's ``MODELS``, with its models loaded.
        module (str): The module that the classes will be attributes of.

    Returns:
        dict[str, type]: The subclasses by the names of the backbones.
    """
    upstream = f'{registry.scope}.models.backbones.'
    classes = {}
    for name, base in list(registry.module_dict.items()):
        if base.__module__.startswith(upstream) and issubclass(
            base, BaseModule
        ):
            body = {'__module__': module, '__doc__': base.__doc__}
            cls = type(base.__name__, (PluggableBackbone, base), body)
            classes[name] = cls
            registry.register_module(name=name, module=cls, force=True)
    return classes


def register_backbones(codebase: str) -> None:
    """Put the pluggable backbones into a codebase's registry.

    Loading a codebase's models takes seconds, so it is left to the registry,
    which imports its modules at the first look-up and, with this, ours after
    them. Where they are there already, ours are imported at once.

    Args:
        codebase (str): One of :data:`mmpsa.compatibility.CODEBASES`, which
            must be installed.
    """
    registry = import_module(f'{codebase}.registry').MODELS
    location = f'mmpsa.codebases.{codebase}'
    if registry._imported:
        import_module(location)
    else:
        registry._locations.append(location)
