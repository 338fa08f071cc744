"""The public functions: PSA as a function of tensors."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from . import composite, reference, registration
from .checks import check_input, check_weights
from .choice import choose_backend, log_backend
from .spec import Spec, Weights, as_list, without_autocast

# The namespace of torch.ops with the kernels of a backend. A second backend
# of a device needs one of its own.
NAMESPACES = {'cpp': registration.OPS, 'triton': registration.OPS}


class Masks(NamedTuple):
    """The two masks of PSA, ``mask_scale`` included.

    ``channel`` is N×C×1×1, ``spatial`` is N×1×H×W. A mask that the layout
    does not have is None.
    """

    channel: Optional[Tensor]
    spatial: Optional[Tensor]


def polarized_self_attention(
    x: Tensor, weights: Weights, spec: Spec, backend: Optional[str] = None
) -> Tensor:
    """Polarized Self-Attention, by the backend of :func:`choose_backend`.

    Args:
        x (Tensor): N×C×H×W. Half precision is computed in float32.
        weights (Weights): The weights that ``spec`` has, of any dtype.
        spec (Spec): What to compute.
        backend (str, optional): The one to prefer, where it can serve.
            Default: None, the fastest.

    Returns:
        Tensor: N×C×H×W, of ``x``'s dtype.

    Raises:
        ValueError: As in :func:`choose_backend`.
        RuntimeError: If one of ``weights`` has another shape or device than
            ``spec`` and ``x`` ask for, or is not of a floating-point dtype.
    """
    chosen = choose_backend(x, weights, spec, backend)
    log_backend(chosen, spec, x, backend)
    if chosen in NAMESPACES:
        return NAMESPACES[chosen].psa.default(x, as_list(weights), *spec)[0]
    _check_weights(x, weights, spec)
    with without_autocast(x):
        if chosen == 'reference':
            return reference.polarized_self_attention(x, weights, spec)
        return composite.forward(x, weights, spec).y


def masks(x: Tensor, weights: Weights, spec: Spec) -> Masks:
    """The masks of the block, by plain torch.

    Args:
        x (Tensor): N×C×H×W.
        weights (Weights): The weights that ``spec`` has, of any dtype.
        spec (Spec): What to compute.

    Returns:
        Masks: The masks in float32, or in float64 for a float64 input.

    Raises:
        ValueError: As in :func:`choose_backend`.
        RuntimeError: As in :func:`polarized_self_attention`.
    """
    check_input(x, weights, spec)
    _check_weights(x, weights, spec)
    with without_autocast(x):
        _, channel, spatial = composite.forward(x, weights, spec)
    return Masks(channel, spatial)


def _check_weights(x, weights, spec):
    """What the operator does itself, for plain torch."""
    if not torch.jit.is_tracing():  # it would record each shape
        check_weights(x, as_list(weights), spec)
