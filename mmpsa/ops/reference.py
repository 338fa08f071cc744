"""Computes Polarized Self-Attention line by line, as published.

`Polarized Self-Attention: Towards High-quality Pixel-wise Regression
<https://arxiv.org/abs/2107.00782>`_, section 3.2, and the arithmetic of the
authors' released code (``PSA_p``, ``PSA_s``). Every map of the equations
exists here. :mod:`mmpsa.ops.composite` computes the same numbers without
most of them. Shapes: X is N×C×H×W, P = H·W, M = max(C // 2, 1).

The equations call layers. These are functions of the weights, or the layers of
a block, where something acts through their forward: hooks, adapters, pruning,
fake quantisation, sharding.
"""

from functools import partial
from typing import Callable, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import Result, Spec, Weights, scaled


class Layers(NamedTuple):
    """What the equations call. None if the spec does not have it.

    The convolutions are 1×1 and map N×·×H×W to N×·×H×W.
    """

    ch_wq: Optional[Callable] = None  # C to 1 channels
    ch_wv: Optional[Callable] = None  # C to M
    # M to C. In the authors' sequential code, it has their LayerNorm inside.
    ch_wz: Optional[Callable] = None
    ln: Optional[Callable] = None  # N×C to N×C
    sp_wq: Optional[Callable] = None  # C to M
    sp_wv: Optional[Callable] = None  # C to M


def layers_of(weights: Weights, spec: Spec) -> Layers:
    """The layers as functions of the weights."""
    w = weights

    def conv(weight, bias):
        return partial(F.conv2d, weight=weight, bias=bias)

    def squeezed(z):
        z = F.conv2d(z, w.ch_wz, w.ch_bz)
        z = F.layer_norm(z, w.ln_weight.shape, w.ln_weight, w.ln_bias)
        return F.conv2d(z.relu(), w.ch_wu, w.ch_bu)

    def normed(z):
        return F.layer_norm(z, w.ln_weight.shape, w.ln_weight, w.ln_bias)

    return Layers(
        ch_wq=conv(w.ch_wq, w.ch_bq),
        ch_wv=conv(w.ch_wv, w.ch_bv),
        ch_wz=squeezed if spec.has_value_map else conv(w.ch_wz, w.ch_bz),
        ln=normed if spec.variant == 'paper' else None,
        sp_wq=conv(w.sp_wq, w.sp_bq),
        sp_wv=conv(w.sp_wv, w.sp_bv),
    )


def forward(
    x: Tensor, layers: Layers, spec: Spec, mask_scale: Optional[Tensor]
) -> Result:
    """The block by its equations.

    Softmaxes and sums are in float32 at least. A layer gets its input in the
    dtype of its weights.

    Args:
        x (Tensor): N×C×H×W.
        layers (Layers): The layers that ``spec`` has.
        spec (Spec): What to compute.
        mask_scale (Tensor, optional): A factor of the masks. Default: None.

    Returns:
        Result: ``y`` in the dtype of ``x``, and the masks in float32 (in
        float64 if ``x`` is float64).
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y, channel, spatial = wide, None, None
    if spec.has_channel:
        channel = scaled(_channel(wide, layers).sigmoid(), mask_scale)
        y = wide * channel
    if spec.has_spatial:
        source = wide if spec.layout == 'parallel' else y
        spatial = _spatial(source, layers, spec).sigmoid()
        spatial = scaled(spatial.unflatten(-1, x.shape[2:]), mask_scale)
        if spec.layout == 'parallel':
            y = y + wide * spatial
        else:
            y = y * spatial
    return Result(y.to(x.dtype), channel, spatial)


def polarized_self_attention(
    x: Tensor, weights: Weights, spec: Spec
) -> Tensor:
    """The block by its equations, as a function of the weights.

    Args:
        x (Tensor): N×C×H×W, of the weights' dtype.
        weights (Weights): The weights that ``spec`` has.
        spec (Spec): What to compute.

    Returns:
        Tensor: N×C×H×W.
    """
    return forward(x, layers_of(weights, spec), spec, weights.mask_scale).y


def _call(layer, x):
    weight = next(layer.parameters(), x) if isinstance(layer, nn.Module) else x
    return layer(x.to(weight.dtype)).to(x.dtype)


def _channel(x, layers):
    v = _call(layers.ch_wv, x).flatten(2)  # N×M×P
    q = _call(layers.ch_wq, x).flatten(2)  # N×1×P
    q = q.softmax(-1)  # over positions
    context = (v @ q.transpose(1, 2)).unsqueeze(-1)  # N×M×1×1
    z = _call(layers.ch_wz, context)  # N×C×1×1
    if layers.ln is not None:
        z = _call(layers.ln, z.flatten(1))[:, :, None, None]
    return z


def _spatial(x, layers, spec):
    q = _call(layers.sp_wq, x).mean((2, 3)).unsqueeze(1)  # N×1×M
    v = _call(layers.sp_wv, x).flatten(2)  # N×M×P
    if spec.variant == 'paper':
        return q.softmax(-1) @ v  # N×1×P; softmax over M
    if spec.layout == 'parallel':
        return (q @ v).softmax(-1)  # over positions
    return q @ v.softmax(-1)  # over positions
