"""Polarized Self-Attention without its C/2×H×W maps, exactly.

1×1 convolutions are linear and softmax weights sum to one, so the order of
convolving and pooling can be turned round (``a`` are softmax weights)::

    Σ_p a_p (Wv x_p + bv)   = Wv (Σ_p a_p x_p) + bv
    mean_p (Wq x_p + bq)    = Wq (mean_p x_p) + bq
    qᵀ (Wv x_p + bv)        = (Wvᵀ q)ᵀ x_p + qᵀ bv

and in the sequential layout, with Y = X ⊙ ch::

    mean_p (ch ⊙ x_p) = ch ⊙ mean_p x_p,    uᵀ (ch ⊙ x_p) = (u ⊙ ch)ᵀ x_p

What remains per position is one multiply-add a channel for each of the two
poolings, the two logits and the gates: the passes over X, which each backend
has its own of. Between them are vectors of an image; their algebra is here,
once. The numbers are those of :mod:`mmpsa.ops.reference`; the one map that
cannot go is the values of the authors' sequential code, whose softmax runs
over positions. Shapes: X is N×C×P, M = max(C // 2, 1).
"""

from types import ModuleType
from typing import Dict, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import torch_passes

# Values up to this are normalised and projected as they are. Beyond it they
# are scaled down first: their squares and products would overflow float32.
_LARGE = 2.0**50

# The convolution whose logits the attention pooling is by.
POOL_QUERY = {'paper': 'ch_wq', 'official': 'conv_q_right'}


class Form(NamedTuple):
    """What a block computes, besides its weights."""

    variant: str
    layout: str
    mask_scale: float


class Vectors(NamedTuple):
    """What the forward's second pass needs to know of an image.

    The spatial mask is ``mask_scale`` times the sigmoid of the logits
    ``query · x_p + bias``, or of their softmax over positions where they have
    a ``scale`` there. None is what the layout does not have.
    """

    channel: Optional[Tensor] = None  # N×C, the channel mask
    query: Optional[Tensor] = None  # N×C
    bias: Optional[Tensor] = None  # N×1; all of the logits, N×P, with no query
    scale: Optional[Tensor] = None  # N×1


def form_of(block: nn.Module) -> Form:
    """What a PolarizedSelfAttention computes."""
    return Form(block.variant, block.layout, block.mask_scale)


def has_value_map(form: Form) -> bool:
    """Whether it takes more than passes over X: a map of values."""
    return form.variant == 'official' and form.layout == 'sequential'


def weights_of(block: nn.Module) -> Dict[str, Tensor]:
    """The weights of a PolarizedSelfAttention by their state dict's names."""
    return {
        f'{name}.{kind}': getattr(layer, kind)
        for name, layer in block.named_modules()
        for kind in ('weight', 'bias')
        if getattr(layer, kind, None) is not None
    }


def collapsed(
    x: Tensor, weights: Dict[str, Tensor], form: Form
) -> Tuple[Tensor, Optional[Tensor], Tensor]:
    """The block in plain torch, for autograd to differentiate.

    Args:
        x (Tensor): N×C×P, float32 or float64.
        weights (dict[str, Tensor]): As of :func:`weights_of`, of any dtype.
        form (Form): What to compute.

    Returns:
        tuple: the result, N×C×P; the channel mask, N×C, if there is one; what
        the spatial mask is the sigmoid of, N×P (empty if there is none).
    """
    context, mean, _ = pool(torch_passes, x, weights, form)
    if has_value_map(form):
        channel, z = _official_sequential(weights, x, context, mean)
        vectors = Vectors(channel, bias=z)
    else:
        vectors = vectors_of(weights, form, context, mean)
    y, z, _ = gate(torch_passes, x, vectors, form)
    return y, vectors.channel, z


def pool(
    passes: ModuleType, x: Tensor, weights: Dict[str, Tensor], form: Form
) -> Tuple[Tensor, Tensor, Tensor]:
    """The first pass: what the vectors are made of.

    Args:
        passes (module): :mod:`~mmpsa.ops.torch_passes` or another of its
            functions.
        x (Tensor): N×C×P, as ``passes.prepare`` returns it.
        weights, form: As in :func:`collapsed`.

    Returns:
        tuple[Tensor]: the sum of the positions by attention and their mean,
        N×C; the attention's logits, N×P. Only the mean is not empty where
        there is no channel mask.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if form.layout == 'spatial':
        none = x.new_empty(0, dtype=dtype)
        return none, x.mean(-1, dtype=dtype), none
    bias = weights.get(f'{POOL_QUERY[form.variant]}.bias')
    if bias is not None:
        bias = bias.to(dtype).expand(x.shape[0], 1)
    query = pool_query(weights, form, x.shape[0], dtype)
    return passes.pool(x, query, bias, None)


def pool_query(
    weights: Dict[str, Tensor], form: Form, images: int, dtype: torch.dtype
) -> Tensor:
    """The attention's query, the same for all images: N×C."""
    query = _matrix(weights, POOL_QUERY[form.variant], dtype)
    return query.expand(images, -1)


def gate(
    passes: ModuleType, x: Tensor, vectors: Vectors, form: Form
) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """The second pass, and one before it if there is a softmax to take.

    Args:
        passes, x, form: As in :func:`pool`.
        vectors (Vectors): What to gate with.

    Returns:
        tuple[Tensor]: as of ``passes.gate``; and with a softmax, the sum of
        the positions by its weights, N×C.
    """
    channel, query, bias, scale = vectors
    focus = None
    if scale is not None:
        focus, _, logits = passes.pool(x, query, None, scale)
        query, bias = None, torch_passes.attention(logits, scale)
    y, z = passes.gate(x, channel, query, bias, form.mask_scale, form.layout)
    return y, z, focus


def vectors_of(
    weights: Dict[str, Tensor],
    form: Form,
    context: Tensor,
    mean: Tensor,
) -> Vectors:
    """From what was pooled to what gates, if there is no value map.

    Args:
        weights (dict[str, Tensor]): As of :func:`weights_of`, of any dtype.
        form (Form): What to compute.
        context (Tensor): N×C, pooled by attention, float32 or float64; any
            if there is no channel mask.
        mean (Tensor): N×C, the mean over positions.

    Returns:
        Vectors: In ``mean``'s dtype.
    """
    channel = query = bias = None
    if form.variant == 'official':
        z = _linear(context, weights, 'conv_v_right')  # N×M
        channel = _linear(z, weights, 'conv_up').sigmoid()  # N×C
        g = _linear(mean, weights, 'conv_q_left')  # N×M
        # Here the query grows with x, so that the logits grow with its square.
        query = g @ _matrix(weights, 'conv_v_left', g.dtype)  # N×C
        query, scale = _scale_down(query)
        return Vectors(channel, query, None, scale)
    if form.layout != 'spatial':
        z = _linear(_linear(context, weights, 'ch_wv'), weights, 'ch_wz')
        z = _layer_norm(z, weights, 'ln')
        channel = form.mask_scale * z.sigmoid()  # N×C
    if form.layout != 'channel':
        if form.layout == 'sequential':
            mean = mean * channel
        q = _linear(mean, weights, 'sp_wq').softmax(-1)  # N×M
        query = q @ _matrix(weights, 'sp_wv', q.dtype)  # N×C
        bias = q @ weights['sp_wv.bias'].to(q.dtype)[:, None]  # N×1
        if form.layout == 'sequential':
            query = query * channel
    return Vectors(channel, query, bias)


def _official_sequential(weights, x, context, mean):
    """The channel mask, and what the spatial one is the sigmoid of, N×P."""
    z = _linear(context, weights, 'conv_v_right')  # N×M
    z = _linear(z, weights, 'conv_up.0')
    z = _layer_norm(z, weights, 'conv_up.1').relu()
    channel = _linear(z, weights, 'conv_up.3').sigmoid()  # N×C
    g = _linear(mean * channel, weights, 'conv_q_left')  # N×M
    # ch folded into the weights: Y is not written, its values are.
    wv = _matrix(weights, 'conv_v_left', x.dtype) * channel[:, None]  # N×M×C
    theta = (wv @ x).softmax(-1)  # N×M×P
    return channel, (g[:, None] @ theta).squeeze(1)


def _matrix(weights, name, dtype):
    """The weight of a 1×1 convolution as a matrix."""
    return weights[f'{name}.weight'].flatten(1).to(dtype)


def _linear(x, weights, name):
    """A 1×1 convolution on one position."""
    bias = weights.get(f'{name}.bias')
    if bias is not None:
        bias = bias.to(x.dtype)
    return F.linear(x, _matrix(weights, name, x.dtype), bias)


def _layer_norm(z, weights, name):
    """LayerNorm over the last dimension of an N×K tensor, of any magnitude."""
    z, _ = _scale_down(z)
    weight, bias = (
        weights[f'{name}.{kind}'].to(z.dtype).flatten()
        for kind in ('weight', 'bias')
    )
    return F.layer_norm(z, z.shape[1:], weight, bias)


def _scale_down(z: Tensor) -> Tuple[Tensor, Tensor]:
    """Bring the rows of an N×K tensor below ``_LARGE``, and their factors."""
    peak = z.detach().abs().amax(-1, keepdim=True)
    scale = (peak / _LARGE).clamp_min(1)
    return z / scale, scale
