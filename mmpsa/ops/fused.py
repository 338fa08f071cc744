"""The collapsed block with a backward of as few passes as its forward.

Saved for it are X and O(C + P) numbers an image. It reads X and its gradient
twice: for the gradients of what gates X, and then, when autograd has taken
those through the algebra of the vectors, for that of X itself, which is the
gated gradient and a sum of rank four.
"""

from importlib import import_module
from typing import Tuple

import torch
from torch import Tensor

from . import torch_passes
from .collapsed import POOL_QUERY, Form, State, collapsed, matrix, vectors_of


# Dynamo does not look inside, what compiles its graph does.
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
    return _Fused.apply(backend, x, Form(*form), names, *tensors)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, x, form, names, *tensors):
        ctx.passes = import_module(f'mmpsa.ops.{backend}_passes')
        ctx.form, ctx.names = form, names
        weights = dict(zip(names, tensors))
        y, state = collapsed(ctx.passes, ctx.passes.prepare(x), weights, form)
        ctx.save_for_backward(x, *state, *tensors)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        x, *saved = ctx.saved_tensors
        state = State(*saved[: len(State._fields)])
        tensors = saved[len(State._fields) :]
        # Whoever calls backward() may do so under autocast.
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled():
                dx, *dtensors = _differentiable(ctx, x, tensors, g)
            else:
                dx, *dtensors = _by_passes(ctx, x, state, tensors, g)
        return None, dx, None, None, *dtensors


def _by_passes(ctx, x, state, tensors, g):
    passes, form, dtype = ctx.passes, ctx.form, x.dtype
    x, g = passes.prepare(x), passes.prepare(g)
    gates = state.channel, state.z, form.mask_scale, form.layout
    dchannel, dquery, dlogits = passes.gate_backward(x, g, *gates, state.focus)

    # The algebra of the vectors again, and autograd through it: it is small.
    with torch.enable_grad():
        context, mean, *leaves = (
            tensor.detach().requires_grad_()
            for tensor in (state.context, state.mean, *tensors)
        )
        weights = dict(zip(ctx.names, leaves))
        vectors = vectors_of(weights, form, context, mean)
    if vectors.scale is not None:
        dlogits, dquery = vectors.scale * dlogits, vectors.scale * dquery
    dbias = dlogits.sum(-1, keepdim=True)
    outputs, grads = zip(
        *(
            (vector, grad)
            for vector, grad in zip(vectors, (dchannel, dquery, dbias))
            if vector is not None
        )
    )
    dcontext, dmean, *dtensors = torch.autograd.grad(
        outputs, (context, mean, *leaves), grads, materialize_grads=True
    )

    if form.layout == 'spatial':
        pooling = None, None, None, None
    else:
        name = POOL_QUERY[form.variant]
        pooling = (
            torch_passes.attention(state.logits, None),
            dcontext,
            matrix(weights, name, mean.dtype).expand(len(x), -1),
            (dcontext * context).sum(-1, keepdim=True),
        )
    dx, dquery = passes.input_backward(
        x, g, *gates, dlogits, vectors.query, dmean, *pooling
    )
    if form.layout != 'spatial':
        place = ctx.names.index(f'{name}.weight')
        dtensors[place] = dquery.sum(0).to(leaves[place].dtype)
        dtensors[place] = dtensors[place].view_as(leaves[place])
    return dx.to(dtype), *dtensors


def _differentiable(ctx, x, tensors, g):
    """The gradients, for a backward that is itself differentiated."""
    weights = dict(zip(ctx.names, tensors))
    y, _ = collapsed(torch_passes, torch_passes.prepare(x), weights, ctx.form)
    needed = ctx.needs_input_grad[1], *ctx.needs_input_grad[4:]
    inputs = [t for t, need in zip((x, *tensors), needed) if need]
    grads = iter(
        torch.autograd.grad(y.to(x.dtype), inputs, g, create_graph=True)
    )
    return [next(grads) if need else None for need in needed]
