"""Defines the operator, and chooses the backend that computes it.

This module defines ``mmpsa::psa`` and its derivative ``mmpsa::psa_backward``
for all devices: schema, shapes, autograd. The kernels for CPUs are in C++
(``csrc/``; they are built when mmpsa is installed, if torch and a compiler are
there). The kernels for GPUs are in :mod:`mmpsa.ops.triton_kernels`. torch's
dispatcher takes the one of the input's device. Plain torch
(:mod:`mmpsa.ops.torch_kernels`) computes what neither serves, without the
operator.
"""

import logging
import os
import subprocess
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Set, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library
from torch.utils import flop_counter

from mmpsa.compatibility import release

from . import reference, torch_kernels
from .spec import (
    Spec,
    Weights,
    check_backward,
    check_forward,
    check_weights,
    dtype_remedy,
    named,
    result_like,
    without_autocast,
)

# 'reference' computes the equations line by line, the others compute the
# collapsed form. A backend that cannot serve a case is replaced by the fastest
# one that can.
BACKENDS = ('reference', 'triton', 'cpp', 'torch')
VARIABLE = 'MMPSA_BACKEND'

# mmpsa is tested with the Triton versions that torch 2.4 and later bring.
_HAS_TRITON = find_spec('triton') is not None and release(
    torch.__version__
) >= (2, 4, 0)
# Triton's way to run kernels on a CPU, slowly.
_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
_DTYPES = {
    'triton': (torch.float32, torch.bfloat16, torch.float16),
    'cpp': (torch.float32, torch.bfloat16),
}
_TRITON_CHANNELS = 2048

# torch 2.1 has it elsewhere.
if hasattr(torch.compiler, 'is_compiling'):
    from torch.compiler import is_compiling
else:
    from torch._utils import is_compiling


class Masks(NamedTuple):
    """The two masks of PSA, ``mask_scale`` included.

    ``channel`` is N×C×1×1, ``spatial`` is N×1×H×W. A mask that the layout
    does not have is None.
    """

    channel: Optional[Tensor]
    spatial: Optional[Tensor]


def backends() -> Dict[str, Optional[str]]:
    """The backends of this installation.

    Returns:
        dict[str, str or None]: For each of ``BACKENDS``, None if it is there,
        otherwise the reason why it is not.
    """
    reasons = dict.fromkeys(BACKENDS)
    if not _HAS_TRITON:
        reasons['triton'] = (
            'it needs Triton and torch >=2.4; install both, or use another '
            'backend'
        )
    elif not torch.cuda.is_available() and not _INTERPRETED:
        reasons['triton'] = 'torch finds no CUDA device'
    reasons['cpp'] = _CPP_MISSING
    return reasons


def check_backend(backend: Optional[str]) -> Optional[str]:
    """The backend that a block was asked to use.

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
        backend (str, optional): The first to ask. Default: None, the fastest.

    Returns:
        str: One of ``BACKENDS``.

    Raises:
        ValueError: If ``x`` is not N×C×H×W with the C of the weights, is of
            integers or complex, or is not on the device of the weights; if
            there is no such ``spec``; or if ``backend`` is none of
            ``BACKENDS``.
    """
    _check(x, weights, spec)
    _refuse_unknown(backend)
    if backend == 'reference':
        # Its convolutions do not mix dtypes, half precision needs widening.
        if x.dtype in (torch.float32, torch.float64) and all(
            weight is None or weight.dtype == x.dtype for weight in weights
        ):
            return 'reference'
    if (
        backend == 'torch'
        or spec.has_value_map
        or x.numel() == 0
        or _is_transformed()
    ):
        return 'torch'
    if x.is_cuda:
        serves = _HAS_TRITON and _is_new_enough(x.device)
        kernel = 'triton'
    elif x.device.type == 'cpu':
        interpreted = backend == 'triton' and _INTERPRETED and _HAS_TRITON
        kernel = 'triton' if interpreted else 'cpp'
        serves = interpreted or _CPP_MISSING is None
    else:
        return 'torch'
    if kernel == 'triton' and (
        x.shape[1] > _TRITON_CHANNELS or _is_refused(x, spec)
    ):
        return 'torch'
    return kernel if serves and x.dtype in _DTYPES[kernel] else 'torch'


def polarized_self_attention(
    x: Tensor, weights: Weights, spec: Spec, backend: Optional[str] = None
) -> Tensor:
    """Polarized Self-Attention, by the backend of :func:`choose_backend`.

    Args:
        x (Tensor): N×C×H×W. Half precision is computed in float32.
        weights (Weights): The weights that ``spec`` has, of any dtype.
        spec (Spec): What to compute.
        backend (str, optional): The first to ask. Default: None, the fastest.

    Returns:
        Tensor: N×C×H×W, of ``x``'s dtype.

    Raises:
        ValueError: As in :func:`choose_backend`.
        RuntimeError: If one of ``weights`` has another shape or device than
            ``spec`` and ``x`` ask for, or is not of a floating-point dtype.
    """
    chosen = choose_backend(x, weights, spec, backend)
    log_backend(chosen, spec, x)
    if chosen == 'torch' and not backend and _misses_extension(x, spec):
        _warn_of_missing_extension()
    if chosen in ('cpp', 'triton'):
        ops = _OPS
        if chosen == 'triton' and not x.is_cuda:
            ops = torch.ops.mmpsa_interpreted
        return ops.psa.default(x, _given(weights), *spec)[0]
    _check_weights(x, weights, spec)
    with without_autocast(x):
        if chosen == 'reference':
            return reference.polarized_self_attention(x, weights, spec)
        return torch_kernels.forward(x, weights, spec).y


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
    _check(x, weights, spec)
    _check_weights(x, weights, spec)
    with without_autocast(x):
        _, channel, spatial = torch_kernels.forward(x, weights, spec)
    return Masks(channel, spatial)


def _check(x, weights, spec):
    spec.check()
    if not x.is_floating_point():
        raise ValueError(
            f'x must be of a floating-point dtype, got {x.dtype}'
            f'{dtype_remedy(x)}'
        )
    name = 'ch_wq' if spec.has_channel else 'sp_wq'
    weight = getattr(weights, name)
    if weight is None:
        raise ValueError(f'weights must have {name} for {spec}, got None')
    if weight.dim() != 4:
        raise ValueError(
            f'{name} must be the weight of a 1×1 convolution, got shape '
            f'{tuple(weight.shape)}'
        )
    channels = weight.shape[1]
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f'x must be N×{channels}×H×W, got {tuple(x.shape)}')
    if x.device != weight.device:
        raise ValueError(
            f'x must be on the device of the weights, {weight.device}, got '
            f'{x.device}; move it with x.to({str(weight.device)!r}), or the '
            'block'
        )


def _given(weights):
    return [weight for weight in weights if weight is not None]


def _check_weights(x, weights, spec):
    """What the operator does itself, for plain torch."""
    if not torch.jit.is_tracing():  # it would record each shape
        check_weights(x, _given(weights), spec)


def _is_transformed():
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


@lru_cache(maxsize=None)
def _is_new_enough(device):
    # what Triton supports
    return torch.cuda.get_device_properties(device).major >= 7


def log_backend(backend: str, spec: Spec, x: Tensor) -> None:
    """Log once for each kind of block and input who serves it."""
    if not is_compiling() and not _is_transformed():
        _log(backend, spec, x.dtype, x.device)


@lru_cache(maxsize=1024)
def _log(backend, spec, dtype, device):
    print_log(
        f'PSA, {spec.variant} {spec.layout}, {dtype}, {device}: {backend} '
        'backend',
        logger='current',
        level=logging.DEBUG,
    )


def _misses_extension(x, spec):
    return (
        _CPP_MISSING is not None
        and not is_compiling()
        and not _is_transformed()
        and not spec.has_value_map
        and x.device.type == 'cpu'
        and x.dtype in _DTYPES['cpp']
        and x.numel() > 0
    )


@lru_cache(maxsize=None)
def _warn_of_missing_extension():
    print_log(
        'PSA is computed by plain torch on this CPU, several times slower '
        f'than by its C++ kernels: {_CPP_MISSING}',
        logger='current',
        level=logging.WARNING,
    )


# The weights are in the order of `shapes`. Where there is a mask_scale, it is
# the last of them, and the backward returns no gradient for it.
# The forward returns the gated input and, for the backward, maps and vectors.
# maps is K×N×P: the logits of the channel attention, then of the spatial mask.
# vectors is N×(8C + 8), in the layout of mmpsa/ops/csrc/cpu.cpp.
_FORWARD = (
    'psa(Tensor x, Tensor[] weights, str variant, str layout)'
    ' -> (Tensor, Tensor, Tensor)'
)
_BACKWARD = (
    'psa_backward(Tensor g, Tensor x, Tensor[] weights, Tensor maps,'
    ' Tensor vectors, str variant, str layout) -> (Tensor, Tensor[])'
)


def _check_psa(dtypes, x, weights, *spec):
    check_forward(x, weights, Spec(*spec), dtypes)


def _check_psa_backward(dtypes, g, x, weights, maps, vectors, *spec):
    spec = Spec(*spec)
    check_forward(x, weights, spec, dtypes)
    check_backward(g, x, maps, vectors, spec)


def _empty_psa(x, weights, *spec):
    spec = Spec(*spec)
    images, channels, height, width = x.shape
    maps = spec.has_channel + spec.has_spatial
    return (
        result_like(x),
        x.new_empty((maps, images, height * width), dtype=torch.float32),
        x.new_empty((images, 8 * channels + 8), dtype=torch.float32),
    )


def _empty_psa_backward(g, x, weights, maps, vectors, *spec):
    learnt, _ = _split(weights, Spec(*spec))
    return result_like(x), [w.new_empty(w.shape) for w in learnt]


def _split(weights, spec):
    """Those that have a gradient, and the one or none that has not."""
    learnt = len(weights) - spec.has_mask_scale
    return weights[:learnt], weights[learnt:]


class _Autograd(torch.autograd.Function):
    """Does what csrc/autograd.cpp does, where that is not built.

    The interpreted Triton kernels always use it.
    """

    @staticmethod
    def forward(ctx, ops, spec, x, *weights):
        with torch._C._AutoDispatchBelowAutograd():
            y, maps, vectors = ops.psa.default(x, list(weights), *spec)
        weights, scale = _split(weights, Spec(*spec))
        # The same memory, but others may write it before the backward.
        scale = [tensor.data for tensor in scale]
        ctx.save_for_backward(x, maps, vectors, *weights, *scale)
        ctx.mark_non_differentiable(maps, vectors)
        ctx.ops, ctx.spec = ops, spec
        return y, maps, vectors

    @staticmethod
    def backward(ctx, g, *_):
        x, maps, vectors, *weights = ctx.saved_tensors
        dx, dweights = ctx.ops.psa_backward.default(
            g, x, weights, maps, vectors, *ctx.spec
        )
        rest = [None] * (len(weights) - len(dweights))
        return None, None, dx, *dweights, *rest


def _backward_autograd(ops, g, x, weights, maps, vectors, *spec):
    """The backward; plain torch computes it if it is itself differentiated."""
    if torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (g, x, *weights)
    ):
        return _backward_by_torch(g, x, weights, Spec(*spec), True)
    with torch._C._AutoDispatchBelowAutograd():
        return ops.psa_backward.default(g, x, weights, maps, vectors, *spec)


def _backward_by_torch(g, x, weights, spec, create_graph):
    """The gradients, by computing the forward again."""
    weights, scale = _split(weights, spec)
    tensors = [x, *weights]
    needed = [tensor for tensor in tensors if tensor.requires_grad]
    if not needed:  # g alone is differentiated, or this is below autograd
        needed = tensors = [t.detach().requires_grad_() for t in tensors]
    x, *weights = tensors
    with torch.enable_grad(), without_autocast(x):
        y = torch_kernels.forward(x, named([*weights, *scale], spec), spec).y
        grads = iter(
            torch.autograd.grad(y, needed, g, create_graph=create_graph)
        )
    dx, *dweights = (
        next(grads) if tensor.requires_grad else torch.zeros_like(tensor)
        for tensor in tensors
    )
    return dx, dweights


# Tests run without it.
SAFETY_NET = True
# Kinds of blocks that Triton's kernels do not serve, because one of them
# failed or was wrong; kernels and kinds that have been compared.
_REFUSED: Set['_Kind'] = set()
_COMPARED: Set[Tuple[str, '_Kind']] = set()
# How far results may be from those of plain torch, in parts of the largest.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}


class _Kind(NamedTuple):
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


def _kind_of(x, spec):
    memory_format = 'with gaps'
    if x.is_contiguous():
        memory_format = 'NCHW'
    elif x.is_contiguous(memory_format=torch.channels_last):
        memory_format = 'channels_last'
    return _Kind(spec, x.dtype, x.shape[1], memory_format)


def _triton_kernel(name):
    # Not before it is needed: importing Triton takes as long as mmpsa itself.
    from . import triton_kernels

    return getattr(triton_kernels, name)


def _guarded(name, check, fallback):
    """A Triton kernel that neither ends nor spoils a training.

    Plain torch serves kinds of blocks for which the kernel does not compile
    or launch. It also serves those for which the first result differs.
    """

    def in_torch(*args):
        with without_autocast(args[0]):
            return fallback(*args)

    def run(*args):
        check(_DTYPES['triton'], *args)
        if not SAFETY_NET:
            return _triton_kernel(name)(*args)
        x = args[0] if name == 'psa' else args[1]
        kind = _kind_of(x, Spec(*args[-2:]))
        if kind in _REFUSED:
            return in_torch(*args)
        try:
            results = _triton_kernel(name)(*args)
        except Exception as error:
            if not _is_of_compiler_or_launch(error):
                raise
            _refuse(
                kind,
                f'the Triton kernels of {name} failed for {kind}. The failure '
                f'was {type(error).__name__}: {error}',
            )
            return in_torch(*args)
        if (name, kind) in _COMPARED or _is_capturing(x):
            return results
        try:
            difference = _difference(
                _compared(results), _compared(in_torch(*_in_double(args)))
            )
        except torch.cuda.OutOfMemoryError:
            difference = 0.0  # there is no room to compare
        if difference is None:  # the next call may say more
            return results
        _COMPARED.add((name, kind))
        if difference <= _TOLERANCE[kind.dtype]:
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


def _is_of_compiler_or_launch(error):
    """The arguments have been checked, so that they are not the cause."""
    is_full = isinstance(error, torch.cuda.OutOfMemoryError)
    if is_full or 'out of memory' in str(error):
        return False
    return type(error).__module__.partition('.')[0] == 'triton' or isinstance(
        error,
        (RuntimeError, OSError, ImportError, subprocess.CalledProcessError),
    )


def _is_refused(x, spec):
    # What is compiled has the operator, which asks again when it runs.
    return not is_compiling() and _kind_of(x, spec) in _REFUSED


def _refuse(kind, why):
    _REFUSED.add(kind)
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


def _difference(results, exact):
    """The largest difference, in parts of the largest value of each tensor.

    None if it says nothing: if the exact values are all zero, or not finite.
    """
    # As the kernel rounds them.
    exact = [a.to(b.dtype).double() for a, b in zip(exact, results)]
    peaks = [tensor.abs().max() for tensor in exact]
    largest = torch.stack(peaks).max().item()
    if not 0 < largest < float('inf'):
        return None
    differences = [
        (ours.double() - tensor).abs().max()
        # Some gradients are zero but for rounding. And below `tiny`, numbers
        # have few digits.
        / peak.clamp_min(max(1e-6 * largest, torch.finfo(ours.dtype).tiny))
        for ours, tensor, peak in zip(results, exact, peaks)
    ]
    return torch.stack(differences).nan_to_num(nan=float('inf')).max().item()


def _forward_fallback(x, weights, *spec):
    y, maps, vectors = _empty_psa(x, weights, *spec)
    spec = Spec(*spec)
    y.copy_(torch_kernels.forward(x, named(weights, spec), spec).y)
    return y, maps, vectors


def _backward_fallback(g, x, weights, maps, vectors, *spec):
    keys = torch._C.DispatchKey
    # Below autograd, where kernels run, nothing would be recorded.
    with torch._C._SetExcludeDispatchKeyGuard(
        keys.AutogradFunctionality, False
    ), torch._C._SetExcludeDispatchKeyGuard(keys.ADInplaceOrView, False):
        dx, dweights = _backward_by_torch(
            g, x.detach(), [w.detach() for w in weights], Spec(*spec), False
        )
    return result_like(x).copy_(dx), [w.contiguous() for w in dweights]


def _define(namespace: str, in_cpp: bool) -> Tuple[Library, Any]:
    """Define the operator; its kernels come from elsewhere."""
    library = Library(namespace, 'DEF')
    ops = getattr(torch.ops, namespace)
    library.define(_FORWARD)
    library.define(_BACKWARD)

    def meta(check, empty):
        def run(*args):
            is_cpp = in_cpp and args[0].device.type == 'cpu'
            check(_DTYPES['cpp' if is_cpp else 'triton'], *args)
            return empty(*args)

        return run

    library.impl('psa', meta(_check_psa, _empty_psa), 'Meta')
    library.impl(
        'psa_backward', meta(_check_psa_backward, _empty_psa_backward), 'Meta'
    )
    library.impl(
        'psa_backward',
        lambda *args: _backward_autograd(ops, *args),
        'Autograd',
    )
    if not in_cpp:

        def psa(x, weights, *spec):
            if torch.is_grad_enabled():
                return _Autograd.apply(ops, spec, x, *weights)
            with torch._C._AutoDispatchBelowAutograd():
                return ops.psa.default(x, weights, *spec)

        library.impl('psa', psa, 'Autograd')
    return library, ops


_BUILD = (
    'install torch and a C++ compiler, then run in a checkout of mmpsa: '
    'pip install --no-deps --force-reinstall . (then start Python outside of '
    'the checkout: inside, it imports the sources, which have no extension)'
)


def _load_extension():
    """Load the C++ kernels, or return the reason why they are missing."""
    extension = find_spec('mmpsa.ops._C')
    if extension is None:
        return f'there is no extension in {Path(__file__).parent}; {_BUILD}'
    try:
        torch.ops.load_library(extension.origin)
    except OSError as error:
        return (
            f'the extension does not load ({error}). If you have changed '
            f'torch, build it again; {_BUILD}'
        )


_CPP_MISSING = _load_extension()
_LIBRARY, _OPS = _define('mmpsa', in_cpp=_CPP_MISSING is None)


def _flops(x_shape, spec):
    """Twice the multiply-adds of the collapsed form.

    Of each position: two logits and two poolings. Of each image: four
    products with M×C matrices.
    """
    images, channels, height, width = x_shape
    spatial, channel = spec.has_spatial, spec.has_channel
    each = channels * height * width * (3 * channel + spatial)
    matrices = 2 * max(channels // 2, 1) * channels * (channel + spatial)
    return 2 * images * (each + matrices)


if hasattr(flop_counter, 'register_flop_formula'):  # from torch 2.2 on

    @flop_counter.register_flop_formula(_OPS.psa)
    def _forward_flops(x, weights, *spec, **kwargs):
        return _flops(x, Spec(*spec))

    @flop_counter.register_flop_formula(_OPS.psa_backward)
    def _backward_flops(g, x, weights, maps, vectors, *spec, **kwargs):
        return 2 * _flops(x, Spec(*spec))


if _HAS_TRITON:
    _KERNELS = {
        'psa': _guarded('psa', _check_psa, _forward_fallback),
        'psa_backward': _guarded(
            'psa_backward', _check_psa_backward, _backward_fallback
        ),
    }
    for _name, _kernel in _KERNELS.items():
        _LIBRARY.impl(_name, _kernel, 'CUDA')
    if _INTERPRETED:
        # The CPU's own kernels keep their place.
        _INTERPRETED_LIBRARY, _ = _define('mmpsa_interpreted', in_cpp=False)
        for _name, _kernel in _KERNELS.items():
            _INTERPRETED_LIBRARY.impl(_name, _kernel, 'CPU')
