"""The collapsed block with a backward of as few passes as its forward.

Saved for it are X and O(C + P) numbers an image. It reads X and its gradient
twice: for the gradients of what gates X, and then, when autograd has taken
those through the algebra of the vectors, for that of X itself, which is the
gated gradient and a sum of rank four.
"""

from importlib import import_module
from itertools import compress
from typing import Tuple

import torch
from torch import Tensor

from . import torch_passes
from .collapsed import (
    POOL_QUERY,
    Form,
    collapsed,
    gate,
    pool,
    pool_query,
    vectors_of,
)


# Dynamo does not look inside; what compiles its graph does.
@torch.compiler.allow_in_graph
def fused(
    backend: str,
    x: Tensor,
    form: Tuple[str, str, float],
    names: Tuple[str, ...],
    *tensors: Tensor,
) -> Tensor:
    """The block by the passes of a backend that serves the case.

    Args:
        backend (str): ``'torch'`` or ``'triton'``.
        x (Tensor): N×C×P.
        form (Form): What to compute, without a value map.
        names (tuple[str]): The names of the weights, as in the state dict.
        tensors (Tensor): The weights.

    Returns:
        Tensor: N×C×P, of ``x``'s dtype.
    """
    differentiate = torch.is_grad_enabled()
    return _Fused.apply(
        differentiate, backend, x, Form(*form), names, *tensors
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, differentiate, backend, x, form, names, *tensors):
        passes = import_module(f'mmpsa.ops.{backend}_passes')
        weights = dict(zip(names, tensors))
        wide = passes.prepare(x)
        *pooled, logits = pool(passes, wide, weights, form)
        leaves = [*pooled, *tensors]
        # The algebra of the vectors is small: autograd takes it from here.
        with torch.set_grad_enabled(differentiate):
            if differentiate:
                leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            weights = dict(zip(names, leaves[2:]))
            vectors = vectors_of(weights, form, *leaves[:2])
        y, z, focus = gate(passes, wide, vectors, form)
        ctx.passes, ctx.form, ctx.names = passes, form, names
        ctx.leaves, ctx.vectors = leaves, vectors
        ctx.save_for_backward(x, logits, z, focus, *tensors)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        # Whoever calls backward() may do so under autocast.
        with torch.autocast(g.device.type, enabled=False):
            if torch.is_grad_enabled():
                dx, *dtensors = _differentiable_backward(ctx, g)
            else:
                dx, *dtensors = _backward(ctx, g)
        return None, None, dx, None, None, *dtensors


def _backward(ctx, g):
    x, logits, z, focus, *tensors = ctx.saved_tensors
    passes, form, vectors = ctx.passes, ctx.form, ctx.vectors
    dtype, x, g = x.dtype, passes.prepare(x), passes.prepare(g)
    gates = vectors.channel, z, form.mask_scale, form.layout
    dchannel, dquery, dlogits = passes.gate_backward(x, g, *gates, focus)
    if vectors.scale is not None:
        dlogits, dquery = vectors.scale * dlogits, vectors.scale * dquery
    grads = dchannel, dquery, dlogits.sum(-1, keepdim=True)
    has = [vector is not None for vector in vectors[:3]]
    dcontext, dmean, *dtensors = torch.autograd.grad(
        list(compress(vectors, has)),
        ctx.leaves,
        list(compress(grads, has)),
        retain_graph=True,
        materialize_grads=True,
    )

    pooling = None, None, None, None
    if form.layout != 'spatial':
        weights = dict(zip(ctx.names, tensors))
        pooling = (
            torch_passes.attention(logits, None),
            dcontext,
            pool_query(weights, form, x.shape[0], logits.dtype),
            ctx.leaves[0],
        )
    dx, dquery = passes.input_backward(
        x, g, *gates, dlogits, vectors.query, dmean, *pooling
    )
    if form.layout != 'spatial':
        place = ctx.names.index(f'{POOL_QUERY[form.variant]}.weight')
        dtensors[place] = dquery.sum(0).view_as(tensors[place])
    return dx.to(dtype), *dtensors


def _differentiable_backward(ctx, g):
    """The same for a backward that is itself differentiated."""
    x, _, _, _, *tensors = ctx.saved_tensors
    weights = dict(zip(ctx.names, tensors))
    y, _, _ = collapsed(torch_passes.prepare(x), weights, ctx.form)
    needed = ctx.needs_input_grad[2], *ctx.needs_input_grad[5:]
    inputs = list(compress((x, *tensors), needed))
    grads = iter(
        torch.autograd.grad(y.to(x.dtype), inputs, g, create_graph=True)
    )
    return [next(grads) if need else None for need in needed]
