"""Triton kernels of the operator: few launches, no synchronisation.

X and its gradients are float32, bfloat16 or float16, with any strides. They
are widened in registers. Everything else is float32.

In the passes over X, a program goes through a span of the positions of one
image. It holds all channels of some positions at a time, so sums over channels
read X once. Sums over positions are sums over the program's span. Between the
passes, one program for each image adds up its spans and computes its vectors,
by the equations of :mod:`mmpsa.ops.algebra`. The vectors that are kept have
the layout of ``csrc/cpu.cpp``.

``registration.py`` calls :func:`psa` and :func:`psa_backward` with arguments
that it has checked, and compares their first results with plain torch. So they
need no checks, and whatever Triton or CUDA raises may pass through.
"""

from typing import List, NamedTuple, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .spec import Spec, named, result_like

# Elements of X that a program holds at a time, and a warp of them.
_TILE = 4096
_WARP_TILE = 512
# Positions that it holds at least: a sector of memory is 32 bytes.
_LEAST_WIDTH = 8
# Programs for each multiprocessor: some compute while others wait for memory.
_PROGRAMS = 4
_MOST_SPLITS = 256
# A block of a matrix, at a time.
_ROWS, _COLUMNS = 32, 128

# The vectors of an image, C numbers each, and the scalars behind them.
_CONTEXT, _MEAN, _VALUE, _NORMED, _CHANNEL, _SOFTMAX, _BASE, _QUERY, _FOCUS = (
    tl.constexpr(i) for i in range(9)
)
_SLOTS = tl.constexpr(9)
_PEAK, _WEIGHT, _BIAS, _DEVIATION, _SCALE, _FOCUS_PEAK, _FOCUS_WEIGHT = (
    tl.constexpr(i) for i in range(7)
)
# The same of their gradients. Those of weights are of one image.
(
    _D_CHANNEL,
    _D_QUERY,
    _GATED_MEAN,
    _D_SOFTMAX,
    _D_SP_BV,
    _D_MEAN,
    _D_GAMMA,
    _D_BETA,
    _D_VALUE,
    _D_CONTEXT,
) = (tl.constexpr(i) for i in range(10))
_D_SLOTS = tl.constexpr(10)
_D_BIAS, _OFFSET = tl.constexpr(0), tl.constexpr(1)

_LARGE = tl.constexpr(2.0**50)  # as in algebra.py
_EPS = tl.constexpr(1e-5)  # of LayerNorm


class _Plan(NamedTuple):
    """How the positions of N images are dealt out to programs."""

    splits: int  # programs per image
    span: int  # positions per program
    height: int  # channels at a time, all of them, as a power of two
    width: int  # positions at a time, a power of two
    warps: int


def _plan(x):
    images, channels, positions = x.shape
    height = triton.next_power_of_2(channels)
    width = max(_TILE // height, _LEAST_WIDTH)
    width = min(width, triton.next_power_of_2(positions))
    tiles = triton.cdiv(positions, width)
    processors = 1  # interpreted, on the CPU
    if x.is_cuda:
        properties = torch.cuda.get_device_properties(x.device)
        processors = properties.multi_processor_count
    splits = triton.cdiv(_PROGRAMS * processors, images)
    span = triton.cdiv(tiles, min(splits, tiles, _MOST_SPLITS)) * width
    warps = min(max(height * width // _WARP_TILE, 1), 16)
    return _Plan(triton.cdiv(positions, span), span, height, width, warps)


def _launch(kernel, grid, like, *args, **constants):
    """Run a kernel on the device of ``like``: each call is one launch."""
    with torch.cuda.device_of(like):
        kernel[grid](*args, **constants)


def _pass(kernel, plan, maps, *args, **constants):
    """Run a kernel on every span; it takes each map with its strides."""
    images, channels, positions = maps[0].shape
    reach = max(
        (channels - 1) * map.stride(1) + (positions - 1) * map.stride(2)
        for map in maps
    )
    _launch(
        kernel,
        (images * plan.splits,),
        maps[0],
        *(value for map in maps for value in (map, *map.stride())),
        *args,
        channels,
        positions,
        plan.splits,
        plan.span,
        HEIGHT=plan.height,
        WIDTH=plan.width,
        OFFSET=tl.int64 if reach >= 2**31 else tl.int32,
        num_warps=plan.warps,
        **constants,
    )


def _on_vectors(kernel, images, channels, plan, like, *args, **constants):
    """Run a kernel on every image."""
    _launch(
        kernel,
        (images,),
        like,
        *args,
        channels,
        max(channels // 2, 1),
        plan.splits,
        HEIGHT=plan.height,
        SPLITS=triton.next_power_of_2(plan.splits),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        num_warps=8 if channels > 64 else 4,
        **constants,
    )


def _flags(spec):
    return dict(
        CHANNEL=spec.has_channel,
        SPATIAL=spec.has_spatial,
        SEQUENTIAL=spec.layout == 'sequential',
        OFFICIAL=spec.variant == 'official',
    )


def _wide(weights, spec):
    """The weights by name, float32."""
    return named([w.float().contiguous() for w in weights], spec)


def _logits(maps, spec):
    """The logits of attention and of the spatial mask; None if not there."""
    return (
        maps[0] if spec.has_channel else None,
        maps[-1] if spec.has_spatial else None,
    )


def psa(
    x: Tensor, weights: List[Tensor], *spec
) -> Tuple[Tensor, Tensor, Tensor]:
    """The kernel of ``mmpsa::psa``."""
    spec, y = Spec(*spec), result_like(x)
    w = _wide(weights, spec)
    x, out = x.flatten(2), y.flatten(2)
    images, channels, positions = x.shape
    plan = _plan(x)
    masks = spec.has_channel + spec.has_spatial
    maps = x.new_empty(masks, images, positions, dtype=torch.float32)
    vectors = maps.new_empty(images, 9 * channels + 8)
    sums = maps.new_empty(images, plan.splits, 2, channels)
    peaks = maps.new_empty(images, plan.splits, 2)
    attention, spatial = _logits(maps, spec)
    _pass(
        _pool_kernel, plan, [x], w.ch_wq, 0, w.ch_bq, None, attention, sums,
        peaks,
    )  # fmt: skip
    _on_vectors(
        _vectors_kernel, images, channels, plan, x, sums, peaks, vectors,
        w.ch_wv, w.ch_bv, w.ch_wz, w.ch_bz, w.ln_weight, w.ln_bias, w.sp_wq,
        w.sp_bq, w.sp_wv, w.sp_bv, w.mask_scale, positions, **_flags(spec),
    )  # fmt: skip
    if spec.variant == 'official':
        query = vectors[:, _QUERY.value * channels :]
        scale = vectors[:, _SLOTS.value * channels + _SCALE.value :]
        _pass(
            _pool_kernel, plan, [x], query, vectors.stride(0), None, scale,
            spatial, sums, peaks,
        )  # fmt: skip
        _launch(
            _focus_kernel, (images,), x, sums, peaks, vectors, channels,
            plan.splits, HEIGHT=plan.height,
            SPLITS=triton.next_power_of_2(plan.splits),
            num_warps=8 if channels > 64 else 4,
        )  # fmt: skip
    _pass(
        _gate_kernel, plan, [x, out], vectors, spatial, w.mask_scale,
        **_flags(spec),
    )  # fmt: skip
    return y, maps, vectors


def psa_backward(
    g: Tensor,
    x: Tensor,
    weights: List[Tensor],
    maps: Tensor,
    vectors: Tensor,
    *spec,
) -> Tuple[Tensor, List[Tensor]]:
    """The kernel of ``mmpsa::psa_backward``."""
    spec, dx = Spec(*spec), result_like(x)
    w = _wide(weights, spec)
    # Row-major, however the weights lie; mask_scale, the last, has none.
    learnt = weights[: len(weights) - spec.has_mask_scale]
    shapes = [t.new_empty(t.shape, dtype=torch.float32) for t in learnt]
    d = named(shapes, spec)
    maps, vectors = maps.contiguous(), vectors.contiguous()
    x, g, out = x.flatten(2), g.flatten(2), dx.flatten(2)
    images, channels, positions = x.shape
    plan = _plan(x)
    attention, spatial = _logits(maps, spec)
    dlogits = None if spatial is None else torch.empty_like(spatial)
    sums = vectors.new_empty(images, plan.splits, 2, channels)
    biases = vectors.new_empty(images, plan.splits)
    gradients = vectors.new_empty(images, 10 * channels + 2)
    parts = vectors.new_empty(images, plan.splits, channels)
    _pass(
        _gate_backward_kernel, plan, [x, g], vectors, spatial, dlogits, sums,
        biases, w.mask_scale, **_flags(spec),
    )  # fmt: skip
    _on_vectors(
        _vectors_backward_kernel, images, channels, plan, x, sums, biases,
        vectors, gradients, w.ch_wv, w.ch_wz, w.ln_weight, w.sp_wq, w.sp_wv,
        w.sp_bv, w.mask_scale, **_flags(spec),
    )  # fmt: skip
    _pass(
        _input_backward_kernel, plan, [x, g, out], vectors, gradients,
        attention, spatial, dlogits, w.ch_wq, parts, w.mask_scale,
        **_flags(spec),
    )  # fmt: skip
    inner = max(channels // 2, 1)
    blocks = max(
        triton.cdiv(inner, _ROWS) * triton.cdiv(channels, _COLUMNS),
        triton.cdiv(channels, _ROWS) * triton.cdiv(inner, _COLUMNS),
    )
    _launch(
        _weights_backward_kernel, (blocks, 8), x, vectors, gradients, parts,
        d.ch_wq, d.ch_bq, d.ch_wv, d.ch_bv, d.ch_wz, d.ch_bz, d.ln_weight,
        d.ln_bias, d.sp_wq, d.sp_bq, d.sp_wv, d.sp_bv, images, channels,
        inner, plan.splits, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=8,
        **_flags(spec),
    )  # fmt: skip
    return dx, [grad.to(t.dtype) for grad, t in zip(shapes, learnt)]


@triton.jit
def _span(positions, splits, span):
    """The program's image, and its first position and the one past its last.

    An image may lie further into a tensor than 32 bits count.
    """
    program = tl.program_id(0)
    start = program % splits * span
    return (
        (program // splits).to(tl.int64),
        start,
        tl.minimum(start + span, positions),
    )


@triton.jit
def _load(x, xn, xc, xp, image, c, p, inside):
    """A tile of an N×C×P tensor, zero where there is none."""
    tile = x + image * xn + c[:, None] * xc + p[None, :] * xp
    return tl.load(tile, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(x, xn, xc, xp, image, c, p, inside, value):
    tile = x + image * xn + c[:, None] * xc + p[None, :] * xp
    tl.store(tile, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _factor(mask_scale):
    """The number that a pointer or None stands for."""
    factor = 1.0
    if mask_scale is not None:
        factor = tl.load(mask_scale)
    return factor


@triton.jit
def _spatial_mask(logits, p, inside, scalars, factor, OFFICIAL: tl.constexpr):
    """Return the spatial mask and the input of its sigmoid.

    This input is the logits, or their softmax if OFFICIAL.
    """
    a = tl.load(logits + p, mask=inside, other=0.0)
    if OFFICIAL:
        peak = tl.load(scalars + _FOCUS_PEAK)
        a = tl.exp((a - peak) * tl.load(scalars + _SCALE))
        a = a / tl.load(scalars + _FOCUS_WEIGHT)
    return factor * tl.sigmoid(a), a


@triton.jit
def _pool_kernel(
    x,
    xn,
    xc,
    xp,
    query,
    query_stride,
    bias,
    scale,
    logits,
    sums,
    peaks,
    channels,
    positions,
    splits,
    span,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Pool each span of X by attention, with online softmax.

    Stores the logits and, for each span, the attended sum of X, the plain
    sum of X, the peak of the logits and the sum of the softmax's weights.
    Without a query, it stores only the plain sum.
    """
    image, start, stop = _span(positions, splits, span)
    c = tl.arange(0, HEIGHT).to(OFFSET)
    valid = c < channels
    if query is not None:
        q = tl.load(query + image * query_stride + c, mask=valid, other=0.0)
        b = 0.0
        if bias is not None:
            b = tl.load(bias)
        factor = 1.0
        if scale is not None:
            factor = tl.load(scale + image * query_stride)
        weighted = tl.zeros((HEIGHT, WIDTH), tl.float32)
        total = tl.zeros((WIDTH,), tl.float32)
        peak = float('-inf')
    plain = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for first in range(start, stop, WIDTH):
        p = first + tl.arange(0, WIDTH).to(OFFSET)
        inside = p < stop
        tile = _load(
            x, xn, xc, xp, image, c, p, valid[:, None] & inside[None, :]
        )
        if query is not None:
            logit = tl.sum(q[:, None] * tile, 0) + b
            tl.store(logits + image * positions + p, logit, mask=inside)
            logit = tl.where(inside, logit, float('-inf'))
            top = tl.maximum(peak, tl.max(logit, 0))
            # The difference first: the product may be too large.
            shrink = tl.exp((peak - top) * factor)
            a = tl.exp((logit - top) * factor)
            weighted = weighted * shrink + a[None, :] * tile
            total = total * shrink + a
            peak = top
        plain += tile
    part = tl.program_id(0).to(tl.int64)
    sums += part * 2 * channels + c
    tl.store(sums + channels, tl.sum(plain, 1), mask=valid)
    if query is not None:
        tl.store(sums, tl.sum(weighted, 1), mask=valid)
        tl.store(peaks + part * 2, peak)
        tl.store(peaks + part * 2 + 1, tl.sum(total, 0))


@triton.jit
def _shares(peaks, factor, splits, SPLITS: tl.constexpr):
    """Return the peak of an image's logits and the sum of their weights."""
    s = tl.arange(0, SPLITS)
    exists = s < splits
    peak = tl.load(peaks + s * 2, mask=exists, other=float('-inf'))
    total = tl.load(peaks + s * 2 + 1, mask=exists, other=0.0)
    top = tl.max(peak, 0)
    return top, tl.sum(total * tl.exp((peak - top) * factor), 0)


@triton.jit
def _combined(parts, stride, channels, splits, HEIGHT: tl.constexpr):
    """The sum of what the spans have, rows of ``stride`` numbers apart."""
    c = tl.arange(0, HEIGHT)
    total = tl.zeros((HEIGHT,), tl.float32)
    for s in range(0, splits):
        total += tl.load(parts + s * stride + c, mask=c < channels, other=0.0)
    return total


@triton.jit
def _attended(
    sums, peaks, top, factor, channels, splits, HEIGHT: tl.constexpr
):
    """Sum the attended vectors of all spans, each weighted by its share."""
    c = tl.arange(0, HEIGHT)
    total = tl.zeros((HEIGHT,), tl.float32)
    for s in range(0, splits):
        share = tl.exp((tl.load(peaks + s * 2) - top) * factor)
        part = tl.load(
            sums + s * 2 * channels + c, mask=c < channels, other=0.0
        )
        total += part * share
    return total


@triton.jit
def _multiply(
    w, bias, x, y, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """y = W x + b, between two barriers.

    All threads have stored x before it is read, and y before this returns.
    """
    tl.debug_barrier()
    for first in range(0, rows, ROWS):
        k = first + tl.arange(0, ROWS)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, columns, COLUMNS):
            j = start + tl.arange(0, COLUMNS)
            inside = (k < rows)[:, None] & (j < columns)[None, :]
            block = tl.load(
                w + k[:, None] * columns + j[None, :], mask=inside, other=0.0
            )
            total += (
                block * tl.load(x + j, mask=j < columns, other=0.0)[None, :]
            )
        result = tl.sum(total, 1)
        if bias is not None:
            result += tl.load(bias + k, mask=k < rows, other=0.0)
        tl.store(y + k, result, mask=k < rows)
    tl.debug_barrier()


@triton.jit
def _multiply_transposed(
    w, x, y, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """y = Wᵀ x, between two barriers as in ``_multiply``."""
    tl.debug_barrier()
    for start in range(0, columns, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, rows, ROWS):
            k = first + tl.arange(0, ROWS)
            inside = (k < rows)[:, None] & (j < columns)[None, :]
            block = tl.load(
                w + k[:, None] * columns + j[None, :], mask=inside, other=0.0
            )
            total += block * tl.load(x + k, mask=k < rows, other=0.0)[:, None]
        tl.store(y + j, tl.sum(total, 0), mask=j < columns)
    tl.debug_barrier()


@triton.jit
def _scaled_down(z):
    """A vector below _LARGE, and what it was divided by."""
    scale = tl.maximum(tl.max(tl.abs(z), 0) / _LARGE, 1.0)
    return z / scale, scale


@triton.jit
def _vectors_kernel(
    sums,
    peaks,
    vectors,
    ch_wv,
    ch_bv,
    ch_wz,
    ch_bz,
    ln_weight,
    ln_bias,
    sp_wq,
    sp_bq,
    sp_wv,
    sp_bv,
    mask_scale,
    positions,
    channels,
    inner,
    splits,
    CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr,
    OFFICIAL: tl.constexpr,
    HEIGHT: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute an image's channel mask and spatial query from pooled X."""
    image = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, HEIGHT)
    valid = c < channels
    v = vectors + image * (_SLOTS * channels + 8)
    scalars = v + _SLOTS * channels
    factor = _factor(mask_scale)
    sums += image * splits * 2 * channels
    peaks += image * splits * 2
    # Slots that the layout does not use are zero.
    for slot in range(0, _SLOTS):
        tl.store(v + slot * channels + c, 0.0, mask=valid)
    tl.store(scalars + tl.arange(0, 8), 0.0)
    tl.debug_barrier()
    mean = _combined(sums + channels, 2 * channels, channels, splits, HEIGHT)
    mean = mean / positions
    tl.store(v + _MEAN * channels + c, mean, mask=valid)
    if CHANNEL:
        top, weight = _shares(peaks, 1.0, splits, SPLITS)
        tl.store(scalars + _PEAK, top)
        tl.store(scalars + _WEIGHT, weight)
        context = _attended(sums, peaks, top, 1.0, channels, splits, HEIGHT)
        tl.store(v + _CONTEXT * channels + c, context / weight, mask=valid)
        value, z = v + _VALUE * channels, v + _CHANNEL * channels
        _multiply(
            ch_wv,
            ch_bv,
            v + _CONTEXT * channels,
            value,
            inner,
            channels,
            ROWS,
            COLUMNS,
        )
        _multiply(ch_wz, ch_bz, value, z, channels, inner, ROWS, COLUMNS)
        channel = tl.load(z + c, mask=valid, other=0.0)
        if not OFFICIAL:
            channel, scale = _scaled_down(channel)
            channel = channel - tl.sum(channel, 0) / channels
            channel = tl.where(valid, channel, 0.0)
            variance = tl.sum(channel * channel, 0) / channels
            deviation = tl.sqrt(variance + _EPS)
            tl.store(scalars + _DEVIATION, deviation * scale)
            channel = channel / deviation
            tl.store(v + _NORMED * channels + c, channel, mask=valid)
            channel = channel * tl.load(ln_weight + c, mask=valid, other=0.0)
            channel += tl.load(ln_bias + c, mask=valid, other=0.0)
        channel = factor * tl.sigmoid(channel)
        tl.debug_barrier()
        tl.store(z + c, channel, mask=valid)
    if SPATIAL:
        base, q = v + _QUERY * channels, v + _SOFTMAX * channels
        pooled = v + _MEAN * channels
        if SEQUENTIAL:
            base = v + _BASE * channels
            pooled = base
            tl.store(pooled + c, mean * channel, mask=valid)
        _multiply(sp_wq, sp_bq, pooled, q, inner, channels, ROWS, COLUMNS)
        if not OFFICIAL:
            t = tl.load(q + c, mask=c < inner, other=float('-inf'))
            t = tl.exp(t - tl.max(t, 0))
            t = t / tl.sum(t, 0)
            bias = tl.load(sp_bv + c, mask=c < inner, other=0.0)
            tl.store(scalars + _BIAS, tl.sum(t * bias, 0))
            tl.debug_barrier()
            tl.store(q + c, t, mask=c < inner)
        _multiply_transposed(sp_wv, q, base, inner, channels, ROWS, COLUMNS)
        if SEQUENTIAL:
            query = tl.load(base + c, mask=valid, other=0.0) * channel
            tl.store(v + _QUERY * channels + c, query, mask=valid)
        if OFFICIAL:
            query, scale = _scaled_down(
                tl.load(base + c, mask=valid, other=0.0)
            )
            tl.store(scalars + _SCALE, scale)
            tl.debug_barrier()
            tl.store(base + c, query, mask=valid)


@triton.jit
def _focus_kernel(
    sums,
    peaks,
    vectors,
    channels,
    splits,
    HEIGHT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Pool X by the softmax of the spatial logits; keep its peak and sum."""
    image = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, HEIGHT)
    v = vectors + image * (_SLOTS * channels + 8)
    scalars = v + _SLOTS * channels
    sums += image * splits * 2 * channels
    peaks += image * splits * 2
    factor = tl.load(scalars + _SCALE)
    top, weight = _shares(peaks, factor, splits, SPLITS)
    focus = _attended(sums, peaks, top, factor, channels, splits, HEIGHT)
    tl.store(v + _FOCUS * channels + c, focus / weight, mask=c < channels)
    tl.store(scalars + _FOCUS_PEAK, top)
    tl.store(scalars + _FOCUS_WEIGHT, weight)


@triton.jit
def _gate_kernel(
    x,
    xn,
    xc,
    xp,
    y,
    yn,
    yc,
    yp,
    vectors,
    logits,
    mask_scale,
    channels,
    positions,
    splits,
    span,
    CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr,
    OFFICIAL: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The spatial mask, and X times both."""
    image, start, stop = _span(positions, splits, span)
    c = tl.arange(0, HEIGHT).to(OFFSET)
    valid = c < channels
    v = vectors + image * (_SLOTS * channels + 8)
    scalars = v + _SLOTS * channels
    factor = _factor(mask_scale)
    if CHANNEL:
        ch = tl.load(v + _CHANNEL * channels + c, mask=valid, other=0.0)
    if SPATIAL and not OFFICIAL:
        q = tl.load(v + _QUERY * channels + c, mask=valid, other=0.0)
        b = tl.load(scalars + _BIAS)
    for first in range(start, stop, WIDTH):
        p = first + tl.arange(0, WIDTH).to(OFFSET)
        inside = p < stop
        both = valid[:, None] & inside[None, :]
        tile = _load(x, xn, xc, xp, image, c, p, both)
        if not SPATIAL:
            out = tile * ch[:, None]
        else:
            if OFFICIAL:
                spatial, _ = _spatial_mask(
                    logits + image * positions,
                    p,
                    inside,
                    scalars,
                    factor,
                    OFFICIAL,
                )
            else:
                logit = tl.sum(q[:, None] * tile, 0) + b
                tl.store(logits + image * positions + p, logit, mask=inside)
                spatial = factor * tl.sigmoid(logit)
            if not CHANNEL:
                out = tile * spatial[None, :]
            elif SEQUENTIAL:
                out = tile * ch[:, None] * spatial[None, :]
            else:
                out = tile * ch[:, None] + tile * spatial[None, :]
        _store(y, yn, yc, yp, image, c, p, both, out)


@triton.jit
def _gate_backward_kernel(
    x,
    xn,
    xc,
    xp,
    g,
    gn,
    gc,
    gp,
    vectors,
    logits,
    dlogits,
    sums,
    biases,
    mask_scale,
    channels,
    positions,
    splits,
    span,
    CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr,
    OFFICIAL: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The gradient of the spatial logits, at each position.

    If OFFICIAL, without the term that the softmax's gradient subtracts. And
    for each span, its part of the gradients of the channel mask, the spatial
    query and its bias.
    """
    image, start, stop = _span(positions, splits, span)
    c = tl.arange(0, HEIGHT).to(OFFSET)
    valid = c < channels
    v = vectors + image * (_SLOTS * channels + 8)
    scalars = v + _SLOTS * channels
    factor = _factor(mask_scale)
    if SEQUENTIAL:
        ch = tl.load(v + _CHANNEL * channels + c, mask=valid, other=0.0)
    of_channel = tl.zeros((HEIGHT, WIDTH), tl.float32)
    of_query = tl.zeros((HEIGHT, WIDTH), tl.float32)
    of_bias = tl.zeros((WIDTH,), tl.float32)
    for first in range(start, stop, WIDTH):
        p = first + tl.arange(0, WIDTH).to(OFFSET)
        inside = p < stop
        both = valid[:, None] & inside[None, :]
        tile = _load(x, xn, xc, xp, image, c, p, both)
        product = tile * _load(g, gn, gc, gp, image, c, p, both)
        if not SPATIAL:
            of_channel += product
        else:
            place = image * positions
            spatial, a = _spatial_mask(
                logits + place, p, inside, scalars, factor, OFFICIAL
            )
            if SEQUENTIAL:
                of_channel += product * spatial[None, :]
                product *= ch[:, None]
            elif CHANNEL:
                of_channel += product
            dz = tl.sum(product, 0) * spatial * (1 - spatial / factor)
            if OFFICIAL:
                dz *= a
            tl.store(dlogits + place + p, dz, mask=inside)
            of_query += dz[None, :] * tile
            of_bias += dz
    part = tl.program_id(0).to(tl.int64)
    sums += part * 2 * channels + c
    if CHANNEL:
        tl.store(sums, tl.sum(of_channel, 1), mask=valid)
    if SPATIAL:
        tl.store(sums + channels, tl.sum(of_query, 1), mask=valid)
        tl.store(biases + part, tl.sum(of_bias, 0))


@triton.jit
def _vectors_backward_kernel(
    sums,
    biases,
    vectors,
    gradients,
    ch_wv,
    ch_wz,
    ln_weight,
    sp_wq,
    sp_wv,
    sp_bv,
    mask_scale,
    channels,
    inner,
    splits,
    CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr,
    OFFICIAL: tl.constexpr,
    HEIGHT: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Backward of ``_vectors_kernel``."""
    image = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, HEIGHT)
    valid = c < channels
    v = vectors + image * (_SLOTS * channels + 8)
    scalars = v + _SLOTS * channels
    factor = _factor(mask_scale)
    d = gradients + image * (_D_SLOTS * channels + 2)
    d_scalars = d + _D_SLOTS * channels
    sums += image * splits * 2 * channels
    if CHANNEL:
        dchannel = _combined(sums, 2 * channels, channels, splits, HEIGHT)
        channel = tl.load(v + _CHANNEL * channels + c, mask=valid, other=0.0)
    if SPATIAL:
        s = tl.arange(0, SPLITS)
        dbias = tl.sum(
            tl.load(biases + image * splits + s, mask=s < splits, other=0.0), 0
        )
        tl.store(d_scalars + _D_BIAS, dbias)
        dquery = _combined(
            sums + channels, 2 * channels, channels, splits, HEIGHT
        )
        mean = tl.load(v + _MEAN * channels + c, mask=valid, other=0.0)
        gated = mean
        if OFFICIAL:
            # The softmax's gradient subtracts dbias * focus. dbias is a sum
            # over all positions, so it is known only here.
            focus = tl.load(v + _FOCUS * channels + c, mask=valid, other=0.0)
            dquery -= dbias * focus
        if SEQUENTIAL:
            base = tl.load(v + _BASE * channels + c, mask=valid, other=0.0)
            dchannel += dquery * base
            dquery *= channel
            gated = mean * channel
        tl.store(d + _D_QUERY * channels + c, dquery, mask=valid)
        tl.store(d + _GATED_MEAN * channels + c, gated, mask=valid)
        dq = d + _D_SOFTMAX * channels
        _multiply(
            sp_wv,
            None,
            d + _D_QUERY * channels,
            dq,
            inner,
            channels,
            ROWS,
            COLUMNS,
        )
        if not OFFICIAL:
            some = c < inner
            dt = tl.load(dq + c, mask=some, other=0.0)
            dt += dbias * tl.load(sp_bv + c, mask=some, other=0.0)
            q = tl.load(v + _SOFTMAX * channels + c, mask=some, other=0.0)
            dt = q * (dt - tl.sum(q * dt, 0))
            tl.debug_barrier()
            tl.store(dq + c, dt, mask=some)
            tl.store(d + _D_SP_BV * channels + c, dbias * q, mask=some)
        dmean = d + _D_MEAN * channels
        _multiply_transposed(sp_wq, dq, dmean, inner, channels, ROWS, COLUMNS)
        if SEQUENTIAL:
            of_gated = tl.load(dmean + c, mask=valid, other=0.0)
            dchannel += of_gated * mean
            tl.debug_barrier()
            tl.store(dmean + c, of_gated * channel, mask=valid)
    if CHANNEL:
        dz = dchannel * channel * (1 - channel / factor)
        if not OFFICIAL:
            normed = tl.load(v + _NORMED * channels + c, mask=valid, other=0.0)
            tl.store(d + _D_GAMMA * channels + c, dz * normed, mask=valid)
            tl.store(d + _D_BETA * channels + c, dz, mask=valid)
            dz *= tl.load(ln_weight + c, mask=valid, other=0.0)
            slope = tl.sum(dz * normed, 0) / channels
            dz = dz - tl.sum(dz, 0) / channels - slope * normed
            dz = dz / tl.load(scalars + _DEVIATION)
        tl.store(d + _D_CHANNEL * channels + c, dz, mask=valid)
        dvalue = d + _D_VALUE * channels
        dcontext = d + _D_CONTEXT * channels
        _multiply_transposed(
            ch_wz,
            d + _D_CHANNEL * channels,
            dvalue,
            channels,
            inner,
            ROWS,
            COLUMNS,
        )
        _multiply_transposed(
            ch_wv, dvalue, dcontext, inner, channels, ROWS, COLUMNS
        )
        context = tl.load(v + _CONTEXT * channels + c, mask=valid, other=0.0)
        offset = context * tl.load(dcontext + c, mask=valid, other=0.0)
        tl.store(d_scalars + _OFFSET, tl.sum(offset, 0))


@triton.jit
def _input_backward_kernel(
    x,
    xn,
    xc,
    xp,
    g,
    gn,
    gc,
    gp,
    dx,
    dxn,
    dxc,
    dxp,
    vectors,
    gradients,
    attention,
    logits,
    dlogits,
    ch_wq,
    parts,
    mask_scale,
    channels,
    positions,
    splits,
    span,
    CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr,
    OFFICIAL: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The gradient of X and, of each span, of the attention's query."""
    image, start, stop = _span(positions, splits, span)
    c = tl.arange(0, HEIGHT).to(OFFSET)
    valid = c < channels
    v = vectors + image * (_SLOTS * channels + 8)
    scalars = v + _SLOTS * channels
    factor = _factor(mask_scale)
    d = gradients + image * (_D_SLOTS * channels + 2)
    d_scalars = d + _D_SLOTS * channels
    place = image * positions
    if SPATIAL:
        q = tl.load(v + _QUERY * channels + c, mask=valid, other=0.0)
        even = tl.load(d + _D_MEAN * channels + c, mask=valid, other=0.0)
        even = even / positions
    if CHANNEL:
        ch = tl.load(v + _CHANNEL * channels + c, mask=valid, other=0.0)
        dc = tl.load(d + _D_CONTEXT * channels + c, mask=valid, other=0.0)
        wq = tl.load(ch_wq + c, mask=valid, other=0.0)
        offset = tl.load(d_scalars + _OFFSET)
        peak = tl.load(scalars + _PEAK)
        weight = tl.load(scalars + _WEIGHT)
        of_query = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for first in range(start, stop, WIDTH):
        p = first + tl.arange(0, WIDTH).to(OFFSET)
        inside = p < stop
        both = valid[:, None] & inside[None, :]
        out = _load(g, gn, gc, gp, image, c, p, both)
        if not SPATIAL:
            out = out * ch[:, None]
        else:
            spatial, a = _spatial_mask(
                logits + place, p, inside, scalars, factor, OFFICIAL
            )
            if not CHANNEL:
                out *= spatial[None, :]
            elif SEQUENTIAL:
                out *= ch[:, None] * spatial[None, :]
            else:
                out *= ch[:, None] + spatial[None, :]
            dz = tl.load(dlogits + place + p, mask=inside, other=0.0)
            if OFFICIAL:
                dz = dz - a * tl.load(d_scalars + _D_BIAS)
                dz *= tl.load(scalars + _SCALE)
            out += dz[None, :] * q[:, None] + even[:, None]
        if CHANNEL:
            tile = _load(x, xn, xc, xp, image, c, p, both)
            logit = tl.load(
                attention + place + p, mask=inside, other=float('-inf')
            )
            a = tl.exp(logit - peak) / weight
            da = a * (tl.sum(dc[:, None] * tile, 0) - offset)
            out += a[None, :] * dc[:, None] + da[None, :] * wq[:, None]
            of_query += da[None, :] * tile
        _store(dx, dxn, dxc, dxp, image, c, p, both, out)
    if CHANNEL:
        part = tl.program_id(0).to(tl.int64) * channels + c
        tl.store(parts + part, tl.sum(of_query, 1), mask=valid)


@triton.jit
def _outer_products(
    a,
    a_stride,
    b,
    b_stride,
    dw,
    db,
    images,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A block of dW = Σ_n a_n b_nᵀ, and of db = Σ_n a_n, if there is one."""
    across = (columns + COLUMNS - 1) // COLUMNS
    k = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    plain = tl.zeros((ROWS,), tl.float32)
    for _ in range(0, images):
        left = tl.load(a + k, mask=k < rows, other=0.0)
        right = tl.load(b + j, mask=j < columns, other=0.0)
        total += left[:, None] * right[None, :]
        plain += left
        a += a_stride
        b += b_stride
    inside = (k < rows)[:, None] & (j < columns)[None, :]
    tl.store(dw + k[:, None] * columns + j[None, :], total, mask=inside)
    if db is not None:
        last = tl.where(tl.program_id(0) % across == 0, rows, 0)
        tl.store(db + k, plain, mask=k < last)


@triton.jit
def _sum(a, a_stride, to, count, length, COLUMNS: tl.constexpr):
    """A block of the sum of rows."""
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for _ in range(0, count):
        total += tl.load(a + j, mask=j < length, other=0.0)
        a += a_stride
    tl.store(to + j, total, mask=j < length)


@triton.jit
def _weights_backward_kernel(
    vectors,
    gradients,
    parts,
    ch_wq,
    ch_bq,
    ch_wv,
    ch_bv,
    ch_wz,
    ch_bz,
    ln_weight,
    ln_bias,
    sp_wq,
    sp_bq,
    sp_wv,
    sp_bv,
    images,
    channels,
    inner,
    splits,
    CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr,
    OFFICIAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of the weights.

    The second program index selects which of them a program computes.
    """
    v, vn = vectors, _SLOTS * channels + 8
    d, dn = gradients, _D_SLOTS * channels + 2
    which = tl.program_id(1)
    if CHANNEL:
        if which == 0:
            _outer_products(
                d + _D_VALUE * channels, dn, v + _CONTEXT * channels, vn,
                ch_wv, ch_bv, images, inner, channels, ROWS, COLUMNS,
            )  # fmt: skip
        if which == 1:
            _outer_products(
                d + _D_CHANNEL * channels, dn, v + _VALUE * channels, vn,
                ch_wz, ch_bz, images, channels, inner, ROWS, COLUMNS,
            )  # fmt: skip
        if which == 2:
            _sum(parts, channels, ch_wq, images * splits, channels, COLUMNS)
            if not OFFICIAL:
                # The bias shifts all logits alike, so the softmax stays.
                tl.store(ch_bq, 0.0)
        if not OFFICIAL:
            if which == 3:
                _sum(
                    d + _D_GAMMA * channels, dn, ln_weight, images, channels,
                    COLUMNS,
                )  # fmt: skip
            if which == 4:
                _sum(
                    d + _D_BETA * channels, dn, ln_bias, images, channels,
                    COLUMNS,
                )  # fmt: skip
    if SPATIAL:
        if which == 5:
            _outer_products(
                d + _D_SOFTMAX * channels, dn, d + _GATED_MEAN * channels, dn,
                sp_wq, sp_bq, images, inner, channels, ROWS, COLUMNS,
            )  # fmt: skip
        if which == 6:
            _outer_products(
                v + _SOFTMAX * channels, vn, d + _D_QUERY * channels, dn,
                sp_wv, None, images, inner, channels, ROWS, COLUMNS,
            )  # fmt: skip
        if not OFFICIAL:
            if which == 7:
                _sum(
                    d + _D_SP_BV * channels, dn, sp_bv, images, inner, COLUMNS
                )
