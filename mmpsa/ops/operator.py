"""The block by whichever backend serves it best.

``'reference'`` computes the equations line by line, the others the collapsed
form: ``'triton'`` by kernels for GPUs, ``'cpp'`` by loops for CPUs,
``'torch'`` by plain torch operations.
"""

import logging
import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Dict, NamedTuple, Optional

import torch
from mmengine.logging import print_log
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import cpp_passes, reference, torch_passes
from .collapsed import collapsed, form_of, has_value_map, weights_of
from .fused import fused

# One that cannot serve a case hands it on to the next.
BACKENDS = ('reference', 'triton', 'cpp', 'torch')
VARIABLE = 'MMPSA_BACKEND'

# Custom operators came with torch 2.4.
_HAS_TRITON = find_spec('triton') is not None and (
    digit_version(torch.__version__) >= digit_version('2.4.0')
)
# Triton's way to run kernels on a CPU, slowly.
_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON_CHANNELS = 2048

# torch 2.1 has it elsewhere.
if hasattr(torch.compiler, 'is_compiling'):
    from torch.compiler import is_compiling
else:
    from torch._utils import is_compiling


class Masks(NamedTuple):
    """The two masks of PSA, ``mask_scale`` included.

    ``channel`` is N×C×1×1, ``spatial`` N×1×H×W; None where the layout has no
    such mask.
    """

    channel: Optional[Tensor]
    spatial: Optional[Tensor]


def backends() -> Dict[str, Optional[str]]:
    """The backends of this installation.

    Returns:
        dict[str, str or None]: for each of ``BACKENDS`` None if it is there,
        or the reason why it is not.
    """
    reasons = dict.fromkeys(BACKENDS)
    if not _HAS_TRITON:
        reasons['triton'] = 'Triton or torch 2.4 is not installed'
    elif not torch.cuda.is_available() and not _INTERPRETED:
        reasons['triton'] = 'torch finds no CUDA device'
    if not cpp_passes.is_built():
        reasons['cpp'] = 'the extension was not built, or for another torch'
    return reasons


def check_backend(backend: Optional[str]) -> Optional[str]:
    """The backend that a block was asked to use.

    Args:
        backend (str, optional): Its argument; without one, the environment
            variable ``MMPSA_BACKEND`` counts.

    Returns:
        str or None: One of ``BACKENDS``, or None for whichever serves best.

    Raises:
        ValueError: If it is none of these; names the argument or variable.
    """
    source = 'backend'
    if backend is None:
        source, backend = VARIABLE, os.environ.get(VARIABLE) or None
    if backend is not None and backend not in BACKENDS:
        raise ValueError(
            f'{source} must be one of {BACKENDS}, got {backend!r}'
        )
    return backend


def choose_backend(block: nn.Module, x: Tensor) -> str:
    """The backend that would compute this, without computing it.

    Args:
        block (PolarizedSelfAttention): The block.
        x (Tensor): N×C×H×W.

    Returns:
        str: One of ``BACKENDS``.
    """
    first = block.backend or 'triton'
    if first == 'reference' and _reference_serves(block, x):
        return 'reference'
    if first != 'torch' and _triton_serves(block, x):
        return 'triton'
    if first != 'torch' and _cpp_serves(block, x):
        return 'cpp'
    return 'torch'


def polarized_self_attention(block: nn.Module, x: Tensor) -> Tensor:
    """What a block computes, by the backend of :func:`choose_backend`.

    Args:
        block (PolarizedSelfAttention): The block.
        x (Tensor): N×C×H×W; half precision is computed in float32.

    Returns:
        Tensor: N×C×H×W, of ``x``'s dtype.
    """
    backend, form = choose_backend(block, x), form_of(block)
    if not is_compiling() and not _is_transformed():
        _log(backend, form, x.shape, x.dtype, x.device)
    weights = weights_of(block)
    with torch.autocast(x.device.type, enabled=False):
        if backend == 'reference':
            return getattr(reference, block.variant)(block, x)
        flat = x.flatten(2)  # N×C×P
        if backend == 'torch' and (
            has_value_map(form) or is_compiling() or _is_transformed()
        ):
            y, _, _ = collapsed(torch_passes.prepare(flat), weights, form)
            y = y.to(x.dtype)
        else:
            y = fused(backend, flat, form, tuple(weights), *weights.values())
        return y.view(x.shape)


def masks(block: nn.Module, x: Tensor) -> Masks:
    """The masks that a block gates with, by the torch backend.

    Args:
        block (PolarizedSelfAttention): The block.
        x (Tensor): N×C×H×W.

    Returns:
        Masks: In float32, or float64 for a float64 input.
    """
    spatial = None
    with torch.autocast(x.device.type, enabled=False):
        wide = torch_passes.prepare(x.flatten(2))
        form, weights = form_of(block), weights_of(block)
        _, channel, z = collapsed(wide, weights, form)
        if channel is not None:
            channel = channel[:, :, None, None]
        if block.layout != 'channel':
            spatial = form.mask_scale * z.sigmoid()
            spatial = spatial.unflatten(-1, x.shape[2:])[:, None]
    return Masks(channel, spatial)


def _reference_serves(block, x):
    # Its convolutions do not mix dtypes, and half precision needs widening.
    return x.dtype in (torch.float32, torch.float64) and all(
        weight.dtype == x.dtype for weight in block.parameters()
    )


def _triton_serves(block, x):
    if not _HAS_TRITON:
        return False
    if x.is_cuda:
        # what Triton supports
        runs = torch.cuda.get_device_properties(x.device).major >= 7
    else:
        asked_for = block.backend == 'triton' and x.device.type == 'cpu'
        runs = asked_for and _INTERPRETED
    return (
        runs
        and x.dtype in _TRITON_DTYPES
        and block.in_channels <= _TRITON_CHANNELS
        and _passes_serve(block, x)
    )


def _cpp_serves(block, x):
    return (
        cpp_passes.is_built()
        and x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.bfloat16)
        and not is_compiling()
        and _passes_serve(block, x)
    )


def _passes_serve(block, x):
    return (
        not has_value_map(form_of(block))
        and x.numel() > 0
        and not _is_transformed()
    )


def _is_transformed():
    """Whether plain torch operations are wanted, to trace or to transform."""
    if is_compiling():  # torch.compile aside
        return not torch.compiler.is_dynamo_compiling()
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


# Once for each.
@lru_cache(maxsize=1024)
def _log(backend, form, shape, dtype, device):
    print_log(
        f'PSA, {form.variant} {form.layout}, on {tuple(shape)}, {dtype}, '
        f'{device}: {backend} backend',
        logger='current',
        level=logging.DEBUG,
    )
