"""The algebra that removes the C/2×H×W maps, exactly.

1×1 convolutions are linear and softmax weights sum to one. So one can pool
first and convolve afterwards (``a`` are softmax weights)::

    Σ_p a_p (Wv x_p + bv)   = Wv (Σ_p a_p x_p) + bv
    mean_p (Wq x_p + bq)    = Wq (mean_p x_p) + bq
    qᵀ (Wv x_p + bv)        = (Wvᵀ q)ᵀ x_p + qᵀ bv

and in the sequential layout, with Y = X ⊙ ch::

    mean_p (ch ⊙ x_p) = ch ⊙ mean_p x_p,    uᵀ (ch ⊙ x_p) = (u ⊙ ch)ᵀ x_p

Only passes over X remain. Per position and channel, they cost one multiply-add
for each of the two poolings, the two logits and the gates. Between the passes,
there are only a few vectors per image. Their algebra is here, in plain torch,
so that autograd differentiates it. The results are those of
:mod:`mmpsa.ops.reference`. One map must stay: the values of the authors'
sequential code, whose softmax runs over positions. Shapes: X is N×C×P,
M = max(C // 2, 1).
"""

from typing import NamedTuple, Optional

import torch.nn.functional as F
from torch import Tensor

from .spec import Spec, Weights, scaled


class Query(NamedTuple):
    """The logits of the spatial mask are ``vector · x_p + bias``.

    In the authors' code, a softmax over positions follows.
    """

    vector: Tensor  # N×C
    bias: Optional[Tensor]  # N×1


def channel_mask(context: Tensor, weights: Weights, spec: Spec) -> Tensor:
    """Compute the channel mask from the features that attention pooled.

    Args:
        context (Tensor): The pooled features, N×C, float32 or float64.
        weights (Weights): The weights, of any dtype.
        spec (Spec): A spec with a channel mask.

    Returns:
        Tensor: N×C, ``mask_scale`` included.
    """
    w = weights
    z = _linear(context, w.ch_wv, w.ch_bv)  # N×M
    z = _linear(z, w.ch_wz, w.ch_bz)  # N×C
    if w.ln_weight is not None:
        z = _layer_norm(z, w.ln_weight, w.ln_bias)
    if spec.has_value_map:
        z = _linear(z.relu(), w.ch_wu, w.ch_bu)
    return scaled(z.sigmoid(), w.mask_scale)


def spatial_query(mean: Tensor, weights: Weights, spec: Spec) -> Query:
    """Compute the query of the spatial mask, if there is no value map.

    Args:
        mean (Tensor): The mean over positions of X (in the sequential layout,
            of Y), N×C, float32 or float64.
        weights (Weights): The weights, of any dtype.
        spec (Spec): A spec with a spatial mask.

    Returns:
        Query: The query for X (in the sequential layout, for Y).
    """
    w = weights
    q = _linear(mean, w.sp_wq, w.sp_bq)  # N×M
    if spec.variant == 'official':
        return Query(q @ matrix(w.sp_wv, q), None)
    q = q.softmax(-1)
    bias = q @ w.sp_bv.to(q.dtype)[:, None]
    return Query(q @ matrix(w.sp_wv, q), bias)


def value_map_logits(
    x: Tensor, mean: Tensor, channel: Tensor, weights: Weights
) -> Tensor:
    """Compute the logits of the authors' sequential code.

    Args:
        x (Tensor): N×C×P, float32 or float64.
        mean (Tensor): The mean over positions, N×C.
        channel (Tensor): The channel mask, N×C.
        weights (Weights): The weights, of any dtype.

    Returns:
        Tensor: N×P.
    """
    g = _linear(mean * channel, weights.sp_wq, None)  # N×M
    # ch is folded into the weights, so Y itself is never written.
    wv = matrix(weights.sp_wv, x) * channel[:, None]  # N×M×C
    theta = (wv @ x).softmax(-1)  # N×M×P
    return (g[:, None] @ theta).squeeze(1)


def matrix(weight: Tensor, like: Tensor) -> Tensor:
    """The weight of a 1×1 convolution as a matrix of ``like``'s dtype."""
    return weight.flatten(1).to(like.dtype)


def _linear(x, weight, bias):
    """A 1×1 convolution on one position."""
    bias = None if bias is None else bias.to(x.dtype)
    return F.linear(x, matrix(weight, x), bias)


def _layer_norm(z, weight, bias):
    """LayerNorm over the last dimension of an N×K tensor."""
    weight, bias = (t.to(z.dtype).flatten() for t in (weight, bias))
    # The weight's shape is a constant in ONNX, that of z may not be.
    return F.layer_norm(z, weight.shape, weight, bias)
