"""Computes the collapsed block in plain torch, on any device, by autograd.

It serves cases without a kernel of their own, and those that need operators of
torch: tracing, exporting, transforming, differentiating twice.
"""

import torch
from torch import Tensor

from .algebra import channel_mask, matrix, spatial_query, value_map_logits
from .spec import Result, Spec, Weights, scaled


def forward(x: Tensor, weights: Weights, spec: Spec) -> Result:
    """The block.

    Args:
        x (Tensor): N×C×H×W. Half precision is computed in float32.
        weights (Weights): The weights, of any dtype.
        spec (Spec): What to compute.

    Returns:
        Result: ``y`` in the dtype of ``x``, and the masks in float32 (in
        float64 if ``x`` is float64).
    """
    size, dtype = x.shape[2:], x.dtype
    wide = x.flatten(2).to(torch.promote_types(dtype, torch.float32))
    channel = spatial = None
    if spec.has_channel:
        context, mean = _pool(wide, weights)
        channel = channel_mask(context, weights, spec)  # N×C
    else:
        mean = wide.mean(-1)
    if spec.has_spatial:
        logits = _spatial_logits(wide, mean, channel, weights, spec)
        spatial = scaled(logits.sigmoid(), weights.mask_scale)  # N×P
    y = _gate(wide, channel, spatial, spec).view(x.shape).to(dtype)
    return Result(
        y,
        None if channel is None else channel[:, :, None, None],
        None if spatial is None else spatial.unflatten(-1, size)[:, None],
    )


def _pool(x, weights):
    """The positions pooled by attention, and their mean: N×C."""
    query = matrix(weights.ch_wq, x).expand(x.shape[0], -1)
    bias = weights.ch_bq
    bias = None if bias is None else bias.to(x.dtype).expand(x.shape[0], 1)
    a = _project(x, query, bias).softmax(-1)
    # One product for both, so that x is read once for the two of them.
    rows = torch.stack((a, torch.ones_like(a)), 1)  # N×2×P
    context, total = (rows @ x.transpose(1, 2)).unbind(1)
    return context, total / x.shape[-1]


def _spatial_logits(x, mean, channel, weights, spec):
    """The input of the spatial mask's sigmoid, N×P."""
    if spec.has_value_map:
        return value_map_logits(x, mean, channel, weights)
    is_sequential = spec.layout == 'sequential'
    query = spatial_query(
        mean * channel if is_sequential else mean, weights, spec
    )
    vector = query.vector * channel if is_sequential else query.vector
    logits = _project(x, vector, query.bias)
    return logits.softmax(-1) if spec.variant == 'official' else logits


def _project(x, query, bias):
    """The N×P products over channels."""
    # No baddbmm: mmengine's FLOP counter would not see it.
    logits = (query[:, None] @ x).squeeze(1)
    return logits if bias is None else logits + bias


def _gate(x, channel, spatial, spec):
    if spec.layout == 'parallel':
        y = x * channel[:, :, None]
        return torch.addcmul(y, x, spatial[:, None])
    if channel is not None:
        x = x * channel[:, :, None]
    if spatial is not None:
        x = x * spatial[:, None]
    return x
