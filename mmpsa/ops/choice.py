"""Chooses the backend that computes a block."""

import logging
import os
from functools import lru_cache
from typing import Optional, Set, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.autograd import forward_ad

from mmpsa.compatibility import is_compiling

from . import safety_net
from .availability import BACKENDS, DEVICES, MISSING, why_unserved
from .checks import check_input
from .spec import Spec, Weights

VARIABLE = 'MMPSA_BACKEND'
# By the type of the device. Other kernels for it run when they are asked for.
_FASTEST = {'cpu': 'cpp', 'cuda': 'triton'}
# What log_backend has told.
_LOGGED: Set[Tuple] = set()


def check_backend(backend: Optional[str]) -> Optional[str]:
    """The backend that a block is asked to prefer.

    Args:
        backend (str, optional): The block's argument. Without it, the
            environment variable ``MMPSA_BACKEND`` counts.

    Returns:
        str or None: One of ``BACKENDS``, or None for the fastest that serves.

    Raises:
        ValueError: If it is none of these. The message names the argument or
            the variable.
    """
    source = 'backend'
    if backend is None:
        source, backend = VARIABLE, os.environ.get(VARIABLE) or None
    _refuse_unknown(backend, source)
    return backend


def _refuse_unknown(backend, source='backend'):
    if backend is not None and backend not in BACKENDS:
        raise ValueError(
            f'{source} must be one of {BACKENDS}, got {backend!r}'
        )


def choose_backend(
    x: Tensor, weights: Weights, spec: Spec, backend: Optional[str] = None
) -> str:
    """The backend that would compute this. It computes nothing.

    Args:
        x (Tensor): N×C×H×W.
        weights (Weights): The weights that ``spec`` has.
        spec (Spec): What to compute.
        backend (str, optional): The one to prefer, where it can serve.
            Default: None, the fastest.

    Returns:
        str: One of ``BACKENDS``.

    Raises:
        ValueError: If ``x`` is not N×C×H×W with the C of the weights, is of
            integers or complex, or is not on the device of the weights; if
            there is no such ``spec``; or if ``backend`` is none of
            ``BACKENDS``.
    """
    check_input(x, weights, spec)
    _refuse_unknown(backend)
    if backend == 'reference' and _is_of_one_dtype(x, weights):
        return 'reference'
    if backend == 'torch' or x.numel() == 0 or is_transformed():
        return 'torch'
    for kernels in (backend, _FASTEST.get(x.device.type)):
        if kernels in DEVICES and _why_not(kernels, x, spec) is None:
            return kernels
    return 'torch'


def _is_of_one_dtype(x, weights):
    # The convolutions of the equations do not mix dtypes, and half precision
    # needs widening.
    return x.dtype in (torch.float32, torch.float64) and all(
        weight is None or weight.dtype == x.dtype for weight in weights
    )


def _why_not(kernels, x, spec):
    reason = why_unserved(kernels, x, spec)
    if reason is None and kernels == 'triton':
        return safety_net.why_refused(x, spec)
    return reason


def is_transformed() -> bool:
    """Whether plain torch operations are wanted, to trace or to transform."""
    if is_compiling():
        # torch.export wants them, torch.compile does not. Only this flag tells
        # the two apart: under torch.compile, torch replaces is_exporting() by
        # True. An older torch has no flag, so both get plain torch.
        return getattr(torch.compiler, '_is_exporting_flag', True)
    return (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def log_backend(
    served_by: str, spec: Spec, x: Tensor, backend: Optional[str] = None
) -> None:
    """Log once for each kind of block and input who serves it.

    It is a warning where the backend that was asked for does not, or where the
    C++ kernels are missing.

    Args:
        served_by (str): One of ``BACKENDS``, or ``'layers'``.
        spec (Spec): What is computed.
        x (Tensor): N×C×H×W.
        backend (str, optional): The one that was asked for.
    """
    kind = served_by, backend, spec, x.dtype, x.device
    if kind in _LOGGED or is_compiling() or is_transformed() or not x.numel():
        return
    _LOGGED.add(kind)
    what = f'PSA, {spec.variant} {spec.layout}, {x.dtype}, {x.device}'
    _log(f'{what}: {served_by} backend', logging.DEBUG)
    if backend not in (None, served_by):
        if served_by == 'layers':
            reason = 'a layer is not as the block made it, so it is called'
        elif backend in DEVICES:
            reason = _why_not(backend, x, spec)
        else:
            reason = (
                'it serves float32 and float64, with weights of that dtype'
            )
        _log(
            f'{what}: {served_by} backend, as {backend} cannot serve it: '
            f'{reason}',
            logging.WARNING,
        )
    elif (
        backend is None
        and served_by == 'torch'
        and MISSING['cpp']
        and why_unserved('cpp', x, spec) == MISSING['cpp']
    ):
        _log(
            'PSA is computed by plain torch on this CPU, several times '
            f'slower than by its C++ kernels: {MISSING["cpp"]}',
            logging.WARNING,
        )


@lru_cache(maxsize=1024)
def _log(line, level):
    print_log(line, logger='current', level=level)
