"""Polarized Self-Attention without its C/2×H×W maps, exactly.

1×1 convolutions are linear and softmax weights sum to one, so the order of
convolving and pooling can be turned round (``a`` are softmax weights)::

    Σ_p a_p (Wv x_p + bv)   = Wv (Σ_p a_p x_p) + bv
    mean_p (Wq x_p + bq)    = Wq (mean_p x_p) + bq
    qᵀ (Wv x_p + bv)        = (Wvᵀ q)ᵀ x_p + qᵀ bv

and in the sequential layout, with Y = X ⊙ ch::

    mean_p (ch ⊙ x_p) = ch ⊙ mean_p x_p,    uᵀ (ch ⊙ x_p) = (u ⊙ ch)ᵀ x_p

What remains per position is one multiply-add a channel for each of the two
poolings, the two logits and the gates. The numbers are those of
:mod:`mmpsa.ops.reference`; the one map that cannot go is the values of the
authors' sequential code, whose softmax runs over positions.
Shapes: X is N×C×H×W, P = H·W, M = max(C // 2, 1).
"""

from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Values up to this are normalised and projected as they are. Beyond it they
# are scaled down first: their squares and products would overflow float32.
_LARGE = 2.0**50


class Masks(NamedTuple):
    """The two masks of PSA, ``mask_scale`` included.

    ``channel`` is N×C×1×1, ``spatial`` N×1×H×W; None where the layout has no
    such mask.
    """

    channel: Optional[Tensor]
    spatial: Optional[Tensor]


def paper_masks(block: nn.Module, x: Tensor) -> Masks:
    """Masks of the paper's equations.

    Args:
        block (PolarizedSelfAttention): A block of ``variant='paper'``.
        x (Tensor): N×C×H×W, float32 or float64; the weights are cast to it.

    Returns:
        Masks: In ``x``'s dtype.
    """
    channel = spatial = None
    if block.layout == 'spatial':
        mean = x.mean((2, 3))
    else:
        context, mean = _attention_pool(x, block.ch_wq)
        z = _linear(_linear(context, block.ch_wv), block.ch_wz)
        z = _layer_norm(z, block.ln)
        channel = block.mask_scale * z.sigmoid()  # N×C
    if block.layout != 'channel':
        if block.layout == 'sequential':
            mean = mean * channel
        q = _linear(mean, block.sp_wq).softmax(-1)  # N×M
        u = q @ _matrix(block.sp_wv, x.dtype)  # N×C
        s = q @ block.sp_wv.bias.to(x.dtype)  # N
        if block.layout == 'sequential':
            u = u * channel
        logits = _project(x, u) + s[:, None]  # N×P
        spatial = block.mask_scale * logits.sigmoid()
    return _as_maps(channel, spatial, x)


def official_masks(block: nn.Module, x: Tensor) -> Masks:
    """Masks as the authors' released code computes them.

    Args:
        block (PolarizedSelfAttention): A block of ``variant='official'``.
        x (Tensor): N×C×H×W, float32 or float64; the weights are cast to it.

    Returns:
        Masks: In ``x``'s dtype.
    """
    context, mean = _attention_pool(x, block.conv_q_right)
    z = _linear(context, block.conv_v_right)  # N×M
    if block.layout == 'parallel':
        channel = _linear(z, block.conv_up).sigmoid()  # N×C
        g = _linear(mean, block.conv_q_left)  # N×M
        u = g @ _matrix(block.conv_v_left, x.dtype)  # N×C
        # Here u grows with x, so that the logits grow with its square.
        u, scale = _scale_down(u)
        logits = _project(x, u)  # N×P
        logits = (logits - logits.detach().amax(-1, keepdim=True)) * scale
        spatial = logits.softmax(-1).sigmoid()
    else:
        squeeze, ln, _, excite = block.conv_up
        z = _layer_norm(_linear(z, squeeze), ln).relu()
        channel = _linear(z, excite).sigmoid()  # N×C
        g = _linear(mean * channel, block.conv_q_left)  # N×M
        # ch folded into the weights: Y is not written, its values are.
        wv = _matrix(block.conv_v_left, x.dtype) * channel[:, None]  # N×M×C
        theta = (wv @ x.flatten(2)).softmax(-1)  # N×M×P
        spatial = (g[:, None] @ theta).squeeze(1).sigmoid()
    return _as_maps(channel, spatial, x)


def gate(x: Tensor, masks: Masks, layout: str) -> Tensor:
    """Apply the masks: the last line of every layout.

    Args:
        x (Tensor): N×C×H×W.
        masks (Masks): Of the same dtype.
        layout (str): The layout that the masks were made for.

    Returns:
        Tensor: N×C×H×W.
    """
    if layout == 'parallel':
        return torch.addcmul(x * masks.channel, x, masks.spatial)
    for mask in masks:
        if mask is not None:
            x = x * mask
    return x


def _attention_pool(x: Tensor, wq: nn.Conv2d) -> Tuple[Tensor, Tensor]:
    """Softmax-weighted sum and plain mean over positions, both N×C."""
    logits = _project(x, _matrix(wq, x.dtype).expand(len(x), -1))  # N×P
    if wq.bias is not None:
        logits = logits + wq.bias.to(x.dtype)
    a = logits.softmax(-1)
    # One product for both, so that x is read once for the two of them.
    rows = torch.stack((a, torch.ones_like(a)), 1)  # N×2×P
    context, total = (rows @ x.flatten(2).transpose(1, 2)).unbind(1)
    return context, total / a.shape[-1]


def _project(x: Tensor, u: Tensor) -> Tensor:
    """N×C×H×W and N×C to the N×P products over channels."""
    return (u[:, None] @ x.flatten(2)).squeeze(1)


def _matrix(conv: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """The weight of a 1×1 convolution as a matrix."""
    return conv.weight.flatten(1).to(dtype)


def _linear(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1×1 convolution on one position."""
    bias = None if conv.bias is None else conv.bias.to(x.dtype)
    return F.linear(x, _matrix(conv, x.dtype), bias)


def _layer_norm(z: Tensor, ln: nn.LayerNorm) -> Tensor:
    """LayerNorm over the last dimension of an N×K tensor, of any magnitude."""
    z, _ = _scale_down(z)
    weight, bias = ln.weight.to(z.dtype), ln.bias.to(z.dtype)
    return F.layer_norm(
        z, z.shape[1:], weight.flatten(), bias.flatten(), ln.eps
    )


def _scale_down(z: Tensor) -> Tuple[Tensor, Tensor]:
    """Bring the rows of an N×K tensor below ``_LARGE``, and their factors."""
    peak = z.detach().abs().amax(-1, keepdim=True)
    scale = (peak / _LARGE).clamp_min(1)
    return z / scale, scale


def _as_maps(channel, spatial, x):
    if channel is not None:
        channel = channel[:, :, None, None]
    if spatial is not None:
        spatial = spatial.unflatten(-1, x.shape[2:])[:, None]
    return Masks(channel, spatial)
