"""Defines ``mmpsa::psa`` and its derivative, ``mmpsa::psa_backward``.

Schema, shapes and autograd are the same for all devices. torch's dispatcher
takes the kernels of the input's device: C++ for CPUs (``csrc/``), Triton for
GPUs. The extension is built when mmpsa is installed, if torch and a compiler
are there.
"""

from typing import Any, Callable, NamedTuple, Tuple

import torch
from torch.library import Library

from . import composite
from .availability import DTYPES, MISSING
from .checks import check_backward, check_forward
from .safety_net import guard
from .spec import Spec, by_name, result_like, saved_shapes, without_autocast

# The weights are in the order of `shapes`. Where there is a mask_scale, it is
# the last of them, and the backward returns no gradient for it.
# The forward returns the gated input and, for the backward, maps and vectors
# (see `saved_shapes`).
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
    maps, vectors = (
        x.new_empty(shape, dtype=torch.float32)
        for shape in saved_shapes(x, Spec(*spec))
    )
    return result_like(x), maps, vectors


def _empty_psa_backward(g, x, weights, maps, vectors, *spec):
    learnt, _ = _split(weights, Spec(*spec))
    return result_like(x), [w.new_empty(w.shape) for w in learnt]


def _split(weights, spec):
    """Those that have a gradient, and the one or none that has not."""
    learnt = len(weights) - spec.has_mask_scale
    return weights[:learnt], weights[learnt:]


class _Autograd(torch.autograd.Function):
    """Does what csrc/autograd.cpp does, where that is not built."""

    @staticmethod
    def forward(ctx, ops, spec, x, *weights):
        with torch._C._AutoDispatchBelowAutograd():
            y, maps, vectors = ops.psa.default(x, list(weights), *spec)
        weights, scale = _split(weights, Spec(*spec))
        # Others may write it before the backward.
        scale = [tensor.detach().clone() for tensor in scale]
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
        y = composite.forward(x, by_name([*weights, *scale], spec), spec).y
        grads = iter(
            torch.autograd.grad(y, needed, g, create_graph=create_graph)
        )
    dx, *dweights = (
        next(grads) if tensor.requires_grad else torch.zeros_like(tensor)
        for tensor in tensors
    )
    return dx, dweights


def _forward_fallback(x, weights, *spec):
    y, maps, vectors = _empty_psa(x, weights, *spec)
    spec = Spec(*spec)
    y.copy_(composite.forward(x, by_name(weights, spec), spec).y)
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


class Operator(NamedTuple):
    """One of the two operators."""

    schema: str
    check: Callable  # takes the dtypes of the kernels, then the arguments
    empty: Callable  # results of the right shapes
    fallback: Callable  # the results, in plain torch


OPERATORS = {
    'psa': Operator(_FORWARD, _check_psa, _empty_psa, _forward_fallback),
    'psa_backward': Operator(
        _BACKWARD,
        _check_psa_backward,
        _empty_psa_backward,
        _backward_fallback,
    ),
}


def define(namespace: str, in_cpp: bool) -> Tuple[Library, Any]:
    """Define the operators in a namespace of ``torch.ops``.

    Args:
        namespace (str): The name.
        in_cpp (bool): Whether the extension has CPU kernels and autograd for
            them.

    Returns:
        tuple: The library, which takes kernels, and the namespace.
    """
    library, ops = Library(namespace, 'DEF'), getattr(torch.ops, namespace)
    for name, operator in OPERATORS.items():
        library.define(operator.schema)
        library.impl(name, _shapes(name, in_cpp), 'Meta')
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


def _shapes(name, in_cpp):
    """What computes the shapes of results, for tracing."""
    triton, cpp = (
        checked(name, OPERATORS[name].empty, DTYPES[kernels])
        for kernels in ('triton', 'cpp')
    )

    def run(*args):
        is_cpp = in_cpp and args[0].device.type == 'cpu'
        return (cpp if is_cpp else triton)(*args)

    return run


def checked(name: str, kernel: Callable, dtypes: Tuple) -> Callable:
    """A kernel that gets the arguments that it can take, and no others.

    Args:
        name (str): The operator that it computes, of ``OPERATORS``.
        kernel (Callable): Computes it.
        dtypes (tuple[torch.dtype]): Those of ``x`` that it serves.
    """

    def run(*args):
        OPERATORS[name].check(dtypes, *args)
        return kernel(*args)

    return run


def triton_kernel(name: str) -> Callable:
    """The Triton kernels of an operator."""

    def run(*args):
        # Not before they are needed: importing Triton takes as long as
        # importing mmpsa.
        from . import triton_kernels

        return getattr(triton_kernels, name)(*args)

    return run


_LIBRARY, OPS = define('mmpsa', in_cpp=not MISSING['cpp'])
if not MISSING['triton']:
    for _name, _operator in OPERATORS.items():
        _kernel = guard(_name, triton_kernel(_name), _operator.fallback)
        _kernel = checked(_name, _kernel, DTYPES['triton'])
        _LIBRARY.impl(_name, _kernel, 'CUDA')
