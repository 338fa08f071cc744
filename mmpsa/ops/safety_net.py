"""Keeps a Triton kernel from ending or spoiling a training.

Plain torch serves kinds of blocks for which a kernel does not compile or
launch, and those for which its first result is wrong.
"""

import logging
import subprocess
from typing import Callable, NamedTuple, Optional, Set, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmpsa.compatibility import is_compiling

from .spec import Spec, without_autocast


class Kind(NamedTuple):
    """Blocks and inputs that a kernel is compiled for."""

    spec: Spec
    dtype: torch.dtype
    channels: int
    memory_format: str

    def __str__(self):
        return (
            f'{self.spec.variant} {self.spec.layout}, {self.dtype}, '
            f'{self.channels} channels, {self.memory_format}'
        )


# Kinds that the kernels do not serve; kernels and kinds that were compared.
REFUSED: Set[Kind] = set()
COMPARED: Set[Tuple[str, Kind]] = set()
# How far results may be from those of plain torch, in parts of the largest.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}


def guard(name: str, kernel: Callable, fallback: Callable) -> Callable:
    """A kernel with a net.

    Args:
        name (str): The operator that the kernel computes.
        kernel (Callable): Computes it for arguments that have been checked.
        fallback (Callable): Computes it in plain torch.
    """

    def in_torch(*args):
        with without_autocast(args[0]):
            return fallback(*args)

    def run(*args):
        x = args[0] if name == 'psa' else args[1]
        kind = _kind_of(x, Spec(*args[-2:]))
        if kind in REFUSED:
            return in_torch(*args)
        try:
            results = kernel(*args)
        except Exception as error:
            if not _is_of_compiler_or_launch(error):
                raise
            _refuse(
                kind,
                f'the Triton kernels of {name} failed for {kind}. The failure '
                f'was {type(error).__name__}: {error}',
            )
            return in_torch(*args)
        if (name, kind) in COMPARED or _is_capturing(x):
            return results
        try:
            exact = _compared(in_torch(*_in_double(args)))
            difference = _difference(_compared(results), exact)
            allowed = _TOLERANCE[kind.dtype]
            if difference is not None and difference > allowed:
                # Values that cancel are noise, in plain torch too.
                plain = _compared(in_torch(*args))
                difference = _difference(_compared(results), exact, plain)
        except Exception:  # no memory, or nothing that is deterministic
            difference = allowed = 0.0
        if difference is None:  # the next call may say more
            return results
        COMPARED.add((name, kind))
        if difference <= allowed:
            return results
        _refuse(
            kind,
            f'the Triton kernels of {name} are wrong for {kind}. Their result '
            f'differs from that of plain torch by {difference:.2g} of the '
            'largest value. Please report this, with what `python -m mmpsa` '
            'prints',
        )
        return in_torch(*args)

    return run


def why_refused(x: Tensor, spec: Spec) -> Optional[str]:
    """Why the kernels do not serve an input any more; None if they do."""
    # What is compiled has the operator, which asks again when it runs.
    if not is_compiling() and _kind_of(x, spec) in REFUSED:
        return 'its kernels failed or were wrong before'
    return None


def _kind_of(x, spec):
    memory_format = 'with gaps'
    if x.is_contiguous():
        memory_format = 'NCHW'
    elif x.is_contiguous(memory_format=torch.channels_last):
        memory_format = 'channels_last'
    return Kind(spec, x.dtype, x.shape[1], memory_format)


def _is_of_compiler_or_launch(error):
    """The arguments have been checked, so that they are not the cause."""
    is_full = isinstance(error, torch.cuda.OutOfMemoryError)
    if is_full or 'out of memory' in str(error):
        return False
    return type(error).__module__.partition('.')[0] == 'triton' or isinstance(
        error,
        (RuntimeError, OSError, ImportError, subprocess.CalledProcessError),
    )


def _refuse(kind, why):
    REFUSED.add(kind)
    print_log(
        f'mmpsa: {why}. Plain torch serves this kind of block from now on. '
        'MMPSA_BACKEND=torch switches the kernels off',
        logger='current',
        level=logging.WARNING,
    )


def _is_capturing(x):
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _in_double(args):
    """More exact than what is compared, also where float32 means TF32."""
    for arg in args:
        if torch.is_tensor(arg):
            yield arg.double()
        elif isinstance(arg, (list, tuple)):
            yield [tensor.double() for tensor in arg]
        else:
            yield arg


def _compared(results):
    """The tensors whose values are defined: y, or all gradients."""
    first, second, *_ = results
    return [first] if torch.is_tensor(second) else [first, *second]


def _difference(results, exact, plain=None):
    """The largest difference, in parts of the largest value of each tensor.

    None if it says nothing: if the exact values are all zero, or not finite.
    With the results of plain torch, those that are at most ten times as far
    from the exact ones as they are do not differ.
    """
    # As the kernel rounds them.
    exact = [a.to(b.dtype).double() for a, b in zip(exact, results)]
    peaks = [tensor.abs().max() for tensor in exact]
    largest = torch.stack(peaks).max().item()
    if not 0 < largest < float('inf'):
        return None
    errors = _errors(results, exact)
    if plain is not None:
        noises = _errors(plain, exact)
        errors = [a * (a > 10 * b) for a, b in zip(errors, noises)]
    differences = [
        # Some gradients are zero but for rounding. And below `tiny`, numbers
        # have few digits.
        error
        / peak.clamp_min(max(1e-6 * largest, torch.finfo(ours.dtype).tiny))
        for error, ours, peak in zip(errors, results, peaks)
    ]
    return torch.stack(differences).nan_to_num(nan=float('inf')).max().item()


def _errors(results, exact):
    return [(a.double() - b).abs().max() for a, b in zip(results, exact)]
