"""Polarized Self-Attention line by line, as published.

`Polarized Self-Attention: Towards High-quality Pixel-wise Regression
<https://arxiv.org/abs/2107.00782>`_, section 3.2. Every map that the equations
name exists here; :mod:`mmpsa.ops.collapsed` computes the same numbers without
most of them. Shapes: X is N×C×H×W, P = H·W, M = max(C // 2, 1).
"""

from torch import Tensor, nn


def paper(block: nn.Module, x: Tensor) -> Tensor:
    """The paper's equations.

    Args:
        block (PolarizedSelfAttention): A block of ``variant='paper'``, whose
            weights, ``layout`` and ``mask_scale`` are used.
        x (Tensor): N×C×H×W, of the weights' dtype.

    Returns:
        Tensor: N×C×H×W.
    """
    return _apply(block, x, _paper_channel, _paper_spatial)


def official(block: nn.Module, x: Tensor) -> Tensor:
    """The arithmetic of the authors' released code (``PSA_p``, ``PSA_s``).

    Args:
        block (PolarizedSelfAttention): A block of ``variant='official'``.
        x (Tensor): N×C×H×W, of the weights' dtype.

    Returns:
        Tensor: N×C×H×W.
    """
    return _apply(block, x, _official_channel, _official_spatial)


def _apply(block, x, channel_mask, spatial_mask):
    scale = block.mask_scale
    if block.layout == 'channel':
        return x * (scale * channel_mask(block, x))
    if block.layout == 'spatial':
        return x * (scale * spatial_mask(block, x))
    y = x * (scale * channel_mask(block, x))
    if block.layout == 'parallel':
        return y + x * (scale * spatial_mask(block, x))
    return y * (scale * spatial_mask(block, y))


def _paper_channel(block, x):
    v = block.ch_wv(x).flatten(2)  # N×M×P
    q = block.ch_wq(x).flatten(2).softmax(-1)  # N×1×P, over positions
    z = block.ch_wz((v @ q.transpose(1, 2)).unsqueeze(-1))  # N×C×1×1
    z = block.ln(z.flatten(1))  # N×C
    return z.sigmoid()[:, :, None, None]


def _paper_spatial(block, x):
    q = block.sp_wq(x).mean((2, 3)).softmax(-1)  # N×M, over channels
    v = block.sp_wv(x).flatten(2)  # N×M×P
    logits = q.unsqueeze(1) @ v  # N×1×P
    return logits.sigmoid().unflatten(-1, x.shape[2:])


def _official_channel(block, x):
    v = block.conv_v_right(x).flatten(2)  # N×M×P
    q = block.conv_q_right(x).flatten(2).softmax(-1)  # N×1×P
    context = (v @ q.transpose(1, 2)).unsqueeze(-1)  # N×M×1×1
    return block.conv_up(context).sigmoid()


def _official_spatial(block, x):
    g = block.conv_q_left(x).mean((2, 3)).unsqueeze(1)  # N×1×M
    theta = block.conv_v_left(x).flatten(2)  # N×M×P
    if block.layout == 'parallel':
        logits = (g @ theta).softmax(-1)  # N×1×P, over positions
    else:
        logits = g @ theta.softmax(-1)  # N×1×P
    return logits.sigmoid().unflatten(-1, x.shape[2:])
