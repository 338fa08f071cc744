"""The passes over X in plain torch, on any device.

A pass reads X (in the backward its gradient too) once and exchanges vectors
with :mod:`mmpsa.ops.collapsed`, where the rest is computed. The forward ones
are differentiable. Shapes: X is N×C×P; vectors are N×C and N×1, maps over the
positions N×P. All are of one dtype, float32 or float64.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor


def prepare(x: Tensor) -> Tensor:
    """X, or a gradient, as these passes want it: half precision widened."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pool(
    x: Tensor, query: Tensor, bias: Optional[Tensor], scale: Optional[Tensor]
) -> Tuple[Tensor, Tensor, Tensor]:
    """Pool the positions by attention, and evenly.

    Args:
        x (Tensor): N×C×P.
        query (Tensor): N×C; the logits are ``query · x_p + bias``.
        bias (Tensor, optional): N×1.
        scale (Tensor, optional): N×1, of the logits in the softmax.

    Returns:
        tuple[Tensor]: the attention's sum and the mean, N×C; the logits, N×P.
    """
    logits = _project(x, query, bias)
    a = attention(logits, scale)
    # One product for both, so that x is read once for the two of them.
    rows = torch.stack((a, torch.ones_like(a)), 1)  # N×2×P
    context, total = (rows @ x.transpose(1, 2)).unbind(1)
    return context, total / x.shape[-1], logits


def gate(
    x: Tensor,
    channel: Optional[Tensor],
    query: Optional[Tensor],
    bias: Optional[Tensor],
    mask_scale: float,
    layout: str,
) -> Tuple[Tensor, Tensor]:
    """Apply the masks.

    Args:
        x (Tensor): N×C×P.
        channel (Tensor, optional): N×C, the channel mask, if there is one.
        query (Tensor, optional): N×C; the spatial mask is the sigmoid of
            ``query · x_p + bias``, times ``mask_scale``.
        bias (Tensor, optional): N×1 or N×P; None if there is no such mask.
        mask_scale (float): As the block's.
        layout (str): As the block's.

    Returns:
        tuple[Tensor]: the result, N×C×P; what the sigmoid was taken of, N×P
        (empty where there is no spatial mask).
    """
    if layout == 'channel':
        return x * channel[:, :, None], x.new_empty(0)
    z = bias.clone() if query is None else _project(x, query, bias)
    return _apply(x, channel, mask_scale * z.sigmoid(), layout), z


def gate_backward(
    x: Tensor,
    g: Tensor,
    channel: Optional[Tensor],
    z: Tensor,
    mask_scale: float,
    layout: str,
    focus: Optional[Tensor],
) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of what :func:`gate` was given, but for X.

    Args:
        x, g (Tensor): N×C×P, the input and the gradient of the result.
        channel, z, mask_scale, layout: As in :func:`gate`.
        focus (Tensor, optional): N×C, ``Σ_p z_p x_p``, if ``z`` are softmax
            weights of the logits, not the logits themselves.

    Returns:
        tuple[Tensor]: the gradients of ``channel``, N×C, of the logits'
        query, N×C, and of the logits, N×P, as the softmax took them. Empty
        where the layout has no such mask.
    """
    gx = g * x
    none = x.new_empty(0)
    if layout == 'channel':
        return gx.sum(-1), none, none
    spatial = mask_scale * z.sigmoid()
    if layout == 'sequential':
        dchannel = (gx @ spatial[:, :, None]).squeeze(-1)
        dspatial = (channel[:, None] @ gx).squeeze(1)
    else:
        dchannel = none if channel is None else gx.sum(-1)
        dspatial = gx.sum(1)
    dlogits = dspatial * spatial * (1 - spatial / mask_scale)
    if focus is not None:
        dlogits = z * (dlogits - (z * dlogits).sum(-1, keepdim=True))
    return dchannel, (x @ dlogits[:, :, None]).squeeze(-1), dlogits


def input_backward(
    x: Tensor,
    g: Tensor,
    channel: Optional[Tensor],
    z: Tensor,
    mask_scale: float,
    layout: str,
    dlogits: Tensor,
    query: Optional[Tensor],
    dmean: Tensor,
    a: Optional[Tensor],
    dcontext: Optional[Tensor],
    pool_query: Optional[Tensor],
    context: Optional[Tensor],
) -> Tuple[Tensor, Tensor]:
    """Gradients of X and of the pooling's query.

    Args:
        x, g, channel, z, mask_scale, layout: As in :func:`gate_backward`.
        dlogits (Tensor): N×P, the gradient of the spatial mask's logits.
        query (Tensor, optional): N×C, as in :func:`gate`, also where ``z``
            was given to it. None if there is no spatial mask.
        dmean (Tensor): N×C, the gradient of the mean.
        a (Tensor, optional): N×P, the softmax weights of the attention; None
            if there is no channel mask, as are the three that follow.
        dcontext (Tensor, optional): N×C, the gradient of its sum.
        pool_query (Tensor, optional): N×C, the ``query`` of :func:`pool`.
        context (Tensor, optional): N×C, the sum itself.

    Returns:
        tuple[Tensor]: the gradients of X, N×C×P, and of ``pool_query``, N×C
        (empty if it is None).
    """
    spatial = None if query is None else mask_scale * z.sigmoid()
    dx = _apply(g, channel, spatial, layout)
    # Everything else is of rank four at most: one product for all of it.
    columns, rows = [dmean / x.shape[-1]], [x.new_ones(len(x), x.shape[-1])]
    if query is not None:
        columns.append(query)
        rows.append(dlogits)
    dquery = x.new_empty(0)
    if a is not None:
        offset = (dcontext * context).sum(-1, keepdim=True)
        da = a * (_project(x, dcontext, None) - offset)
        columns += [dcontext, pool_query]
        rows += [a, da]
        dquery = (x @ da[:, :, None]).squeeze(-1)
    dx.baddbmm_(torch.stack(columns, 2), torch.stack(rows, 1))
    return dx, dquery


def attention(logits: Tensor, scale: Optional[Tensor]) -> Tensor:
    """Softmax of N×P logits over positions, scaled (N×1) or not."""
    if scale is not None:
        # They may be too large to be scaled themselves.
        peak = logits.detach().amax(-1, keepdim=True)
        logits = (logits - peak) * scale
    return logits.softmax(-1)


def _project(x, query, bias):
    """The N×P products over channels."""
    # No baddbmm: mmengine's FLOP counter would not see it.
    logits = (query[:, None] @ x).squeeze(1)
    return logits if bias is None else logits + bias


def _apply(x, channel, spatial, layout):
    if layout == 'parallel':
        y = x * channel[:, :, None]
        return torch.addcmul(y, x, spatial[:, None])
    if channel is not None:
        x = x * channel[:, :, None]
    if spatial is not None:
        x = x * spatial[:, None]
    return x
