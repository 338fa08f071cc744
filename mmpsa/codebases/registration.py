"""Upstream's classes with ``plugins=``, under upstream's own names."""

import logging
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Dict, Iterable

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS, Registry
from torch import nn

from mmpsa.plugins import pluggable
from mmpsa.plugins.extension import plain_class
from mmpsa.psa import SIGNATURES

# The folders of a codebase's models, and the base class of the models in each.
# BaseModule leaves out UNet's upsampling layers, which are registered too.
_BASES = {
    'backbones': BaseModule,
    'necks': nn.Module,
    'heads': nn.Module,
    'decode_heads': nn.Module,
    'dense_heads': nn.Module,
    'roi_heads': nn.Module,
    'seg_heads': nn.Module,
    'tracking_heads': nn.Module,
}


@contextmanager
def _as_upstreams(module):
    """Let a module of a class of ours be of upstream's class for a while.

    Where upstream asks ``self.__class__ is DETRHead``, it leaves out its own
    subclasses, and would leave out ours. It asks in constructors and where
    weights are loaded.
    """
    ours, upstream = type(module), vars(plain_class(module)).get('upstream')
    if upstream is not None:
        module.__class__ = upstream
    try:
        yield
    finally:
        module.__class__ = ours


class WarnsOfUnusedPSA:
    """Warns if a state dict has weights of PSA blocks that the model lacks."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self._warn_of_unused_psa(state_dict, prefix)
        load = super()._load_from_state_dict
        with _as_upstreams(self):
            load(state_dict, prefix, *args)

    def _warn_of_unused_psa(self, state_dict, prefix):
        modules = dict(self.named_modules())
        inner = tuple(  # these warn of theirs
            f'{name}.'
            for name, module in modules.items()
            if name and isinstance(module, WarnsOfUnusedPSA)
        )
        paths = {
            key[len(prefix) : -len(end) - 1]
            for key in state_dict
            for end in SIGNATURES
            if key.startswith(prefix) and key.endswith(f'.{end}')
        }
        unused = sorted(
            path for path in paths - set(modules) if not path.startswith(inner)
        )
        if unused:
            print_log(
                f'The state dict has Polarized Self-Attention weights for '
                f'{len(unused)} places where this {type(self).__name__} has '
                f'none (the first is {unused[0]}). They are not loaded: the '
                'model computes something else than the one that was saved. '
                'Give it the plugins= that it was trained with.',
                logger='current',
                level=logging.WARNING,
            )


def register(registry: Registry, module: str) -> Dict[str, type]:
    """Subclass a codebase's backbones, necks and heads; register these.

    Args:
        registry (Registry): The codebase's ``MODELS``, with its models loaded.
        module (str): The module that the classes will be attributes of.

    Returns:
        dict[str, type]: The subclasses by the names of upstream's classes.
    """
    classes = {}
    for name, base in list(registry.module_dict.items()):
        scope, models, folder, *_ = (*base.__module__.split('.'), '', '')
        kind = _BASES.get(folder)
        if (
            (scope, models) == (registry.scope, 'models')
            and kind
            and issubclass(base, kind)
        ):
            body = {
                '__module__': module,
                '__doc__': base.__doc__,
                '__init__': _constructor_of(base),
                'plugin_positions': folder == 'backbones',
                'upstream': base,
            }
            cls = pluggable(
                type(base.__name__, (WarnsOfUnusedPSA, base), body)
            )
            classes[name] = cls
            registry.register_module(name=name, module=cls, force=True)
    return classes


def _constructor_of(base):
    @wraps(base.__init__)
    def __init__(self, *args, **kwargs):
        with _as_upstreams(self):
            base.__init__(self, *args, **kwargs)

    return __init__


def register_models(codebases: Iterable[str]) -> None:
    """Put the classes with ``plugins=`` into the codebases' registries.

    Importing a codebase takes seconds, so this function does not import it. At
    its first look-up, the codebase's registry imports the models of the
    codebase, and then mmpsa's classes. If the registry has imported the models
    already, this imports mmpsa's classes at once.

    Args:
        codebases (Iterable[str]): Of :data:`mmpsa.version.CODEBASES`.
    """
    for registry in MODELS.children.values():
        _follow(registry, codebases)

    def add_child(registry):
        type(MODELS)._add_child(MODELS, registry)
        _follow(registry, codebases)

    # When a codebase is imported, it makes a registry below mmengine's.
    MODELS._add_child = add_child


def _follow(registry, codebases):
    if registry.scope not in codebases:
        return
    location = f'{__package__}.{registry.scope}'
    if registry._imported:
        import_module(location)
    else:
        registry._locations.append(location)
