"""Computes Polarized Self-Attention line by line, as published.

`Polarized Self-Attention: Towards High-quality Pixel-wise Regression
<https://arxiv.org/abs/2107.00782>`_, section 3.2, and the arithmetic of the
authors' released code (``PSA_p``, ``PSA_s``). Every map of the equations
exists here. :mod:`mmpsa.ops.torch_kernels` computes the same numbers without
most of them. Shapes: X is N×C×H×W, P = H·W, M = max(C // 2, 1).
"""

import torch.nn.functional as F
from torch import Tensor

from .spec import Spec, Weights, scaled


def polarized_self_attention(
    x: Tensor, weights: Weights, spec: Spec
) -> Tensor:
    """The block by its equations.

    Args:
        x (Tensor): N×C×H×W, of the weights' dtype.
        weights (Weights): The weights that ``spec`` has.
        spec (Spec): What to compute.

    Returns:
        Tensor: N×C×H×W.
    """
    channel_mask, spatial_mask = _MASKS[spec.variant]
    if spec.layout == 'channel':
        return x * channel_mask(x, weights, spec)
    if spec.layout == 'spatial':
        return x * spatial_mask(x, weights, spec)
    y = x * channel_mask(x, weights, spec)
    if spec.layout == 'parallel':
        return y + x * spatial_mask(x, weights, spec)
    return y * spatial_mask(y, weights, spec)


def _paper_channel(x, w, spec):
    v = F.conv2d(x, w.ch_wv, w.ch_bv).flatten(2)  # N×M×P
    q = F.conv2d(x, w.ch_wq, w.ch_bq).flatten(2)  # N×1×P
    q = q.softmax(-1)  # over positions
    context = (v @ q.transpose(1, 2)).unsqueeze(-1)  # N×M×1×1
    z = F.conv2d(context, w.ch_wz, w.ch_bz).flatten(1)  # N×C
    z = F.layer_norm(z, z.shape[1:], w.ln_weight, w.ln_bias)
    return scaled(z.sigmoid(), w)[:, :, None, None]


def _paper_spatial(x, w, spec):
    q = F.conv2d(x, w.sp_wq, w.sp_bq).mean((2, 3)).softmax(-1)  # N×M, over M
    v = F.conv2d(x, w.sp_wv, w.sp_bv).flatten(2)  # N×M×P
    logits = q.unsqueeze(1) @ v  # N×1×P
    return scaled(logits.sigmoid(), w).unflatten(-1, x.shape[2:])


def _official_channel(x, w, spec):
    v = F.conv2d(x, w.ch_wv).flatten(2)  # N×M×P
    q = F.conv2d(x, w.ch_wq).flatten(2).softmax(-1)  # N×1×P
    context = (v @ q.transpose(1, 2)).unsqueeze(-1)  # N×M×1×1
    z = F.conv2d(context, w.ch_wz, w.ch_bz)
    if spec.layout == 'sequential':
        z = F.layer_norm(z, z.shape[1:], w.ln_weight, w.ln_bias).relu()
        z = F.conv2d(z, w.ch_wu, w.ch_bu)
    return z.sigmoid()  # N×C×1×1


def _official_spatial(x, w, spec):
    g = F.conv2d(x, w.sp_wq).mean((2, 3)).unsqueeze(1)  # N×1×M
    theta = F.conv2d(x, w.sp_wv).flatten(2)  # N×M×P
    if spec.layout == 'parallel':
        logits = (g @ theta).softmax(-1)  # N×1×P, over positions
    else:
        logits = g @ theta.softmax(-1)  # N×1×P
    return logits.sigmoid().unflatten(-1, x.shape[2:])


_MASKS = {
    'paper': (_paper_channel, _paper_spatial),
    'official': (_official_channel, _official_spatial),
}
