"""Warns of plugins that took no part in the first training iteration."""

import logging
from typing import Dict
from weakref import WeakKeyDictionary

from mmengine.logging import print_log
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

# The plugins of each module, by name, until an optimizer has trained it.
_waiting = WeakKeyDictionary()
_handle = None
# So many steps wait for a module. A frozen teacher is never trained.
_PATIENCE = 100
_steps = 0


def watch(module: nn.Module, layers: Dict[str, nn.Module]):
    """Warn once of plugins that no gradient reaches, by their names.

    The iteration ends with the first step of an optimizer. All optimizers of
    torch call the hook, until no module waits for it.

    Args:
        module (nn.Module): The module that has the plugins.
        layers (dict[str, nn.Module]): The plugins, by name in ``module``.
    """
    global _handle, _steps
    _steps = 0
    _waiting.setdefault(module, {}).update(layers)
    if _handle is None:
        _handle = register_optimizer_step_post_hook(_check)


def _check(optimizer, args, kwargs):
    global _handle, _steps
    _steps += 1
    stepped = {
        id(p)
        for group in optimizer.param_groups
        for p in group['params']
        if p.grad is not None
    }
    for module in list(_waiting):
        if any(id(p) in stepped for p in module.parameters()):
            _warn(module, _waiting.pop(module))
    if not _waiting or _steps == _PATIENCE:
        _waiting.clear()
        _handle.remove()
        _handle = None


def _warn(module, layers):
    missed = []
    for name, layer in layers.items():
        trained = [p for p in layer.parameters() if p.requires_grad]
        if trained and all(p.grad is None for p in trained):
            missed.append(name)
    if missed:
        print_log(
            f'{len(missed)} plugins of {type(module).__name__} took no part '
            f'in the first training iteration: {", ".join(missed)}. The '
            'modules that they follow were not called, or what these returned '
            'was not used.',
            logger='current',
            level=logging.WARNING,
        )
