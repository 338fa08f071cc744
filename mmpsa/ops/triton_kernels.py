"""Triton kernels of the operator: few launches, no synchronisation.

X and its gradients are float32, bfloat16 or float16, NCHW or channels_last;
others are copied first. They are widened in registers. Everything else is
float32.

In the passes over X, a program has a span of the positions of one image. It
goes through the channels in chunks: for sums over channels, and then again for
sums over positions and for results. A span is so narrow that the second time
its values come from the core's own cache (beyond 512 channels in float32, from
the GPU's). So a span needs no registers for its channels, however many there
are. Between the passes, the spans of each image are added up, and its vectors
computed, by the equations of :mod:`mmpsa.ops.algebra`.

``registration.py`` calls :func:`psa` and :func:`psa_backward` with arguments
that it has checked, and compares their first results with plain torch. So they
need no checks, and whatever Triton or CUDA raises may pass through.
"""

import math
from typing import List, NamedTuple, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .spec import Spec, by_name, result_like, saved_shapes

# Elements of X that a program loads at a time, and those of a warp.
_TILE, _WARP_TILE = 8192, 1024
# Bytes of X in a span: a core's cache holds those of two programs, and of the
# gradient beside X.
_SPAN_BYTES = 2**15
# Positions that a span has at least, two sectors of memory in half precision.
_LEAST_WIDTH = 32
# Programs for each multiprocessor, which has two or more of them at a time.
_PROGRAMS = 4
# Registers of a thread, at most. Told none, NVIDIA's compiler keeps numbers
# in memory to make do with fewer. AMD's has no such option.
_OPTIONS = {} if torch.version.hip else dict(maxnreg=128)
# Elements of a matrix, or of the sums of spans, that a program loads at a
# time; of a tile of the weights' gradients, a row and a column.
_MATRIX, _SUMS, _BLOCK = 16384, 8192, 32
# Up to so many channels, of few images and of many, one program computes all
# vectors of an image, unless the images are few and their spans too many.
# Beyond, it would load too often: there are programs for blocks of the vectors
# of several images, and a launch for each step that needs the result of
# another.
_ALONE_FEW, _ALONE, _MANY = 384, 512, 32
_MOST_SUMS, _BLOCKS, _GROUPS = 16 * _SUMS, 64, 8
_ALL = tl.constexpr(-1)  # steps

# The vectors of an image, C numbers each, and the scalars behind them.
_CONTEXT, _MEAN, _VALUE, _NORMED, _CHANNEL, _SOFTMAX, _BASE, _QUERY, _FOCUS = (
    tl.constexpr(i) for i in range(9)
)
_SLOTS = tl.constexpr(9)
_PEAK, _WEIGHT, _BIAS, _DEVIATION, _FOCUS_PEAK, _FOCUS_WEIGHT = (
    tl.constexpr(i) for i in range(6)
)
# The same of their gradients. Those of weights are of one image.
(
    _D_MASK, _D_CHANNEL, _D_QUERY, _GATED_MEAN, _D_LOGITS, _D_SOFTMAX,
    _D_SP_BV, _D_GATED, _D_MEAN, _D_GAMMA, _D_BETA, _D_VALUE, _D_CONTEXT,
) = (tl.constexpr(i) for i in range(13))  # fmt: skip
_D_SLOTS = tl.constexpr(13)  # and one scalar, the gradient of the bias

_EPS = tl.constexpr(1e-5)  # of LayerNorm


class _Plan(NamedTuple):
    """How X is dealt out to programs."""

    spans: int  # programs per image
    width: int  # positions per span, a power of two
    height: int  # the channels, as a power of two
    is_last: bool  # channels_last
    unit: int  # a power of two that divides the length of a row in memory


def _processors(x):
    """The multiprocessors of a GPU; 1 if interpreted, on the CPU."""
    if not x.is_cuda:
        return 1
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def _plan(x):
    """The plan for a dense tensor of shape N×C×H×W."""
    images, channels, *size = x.shape
    positions, height = math.prod(size), triton.next_power_of_2(channels)
    programs = _PROGRAMS * _processors(x)
    width = min(
        triton.next_power_of_2(triton.cdiv(images * positions, programs)),
        _SPAN_BYTES // (height * x.element_size()),
    )
    width = max(width, _LEAST_WIDTH, _WARP_TILE // 2 // height)
    width = min(width, _TILE // 2, triton.next_power_of_2(positions))
    is_last = not x.is_contiguous()
    return _Plan(
        triton.cdiv(positions, width),
        width,
        height,
        is_last,
        math.gcd(channels if is_last else positions, 16),
    )


def _dense(x):
    """X itself if it is NCHW or channels_last, else a copy."""
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return x if is_last else x.contiguous()


def _launch(kernel, grid, like, *args, **constants):
    """Run a kernel on the device of ``like``: each call is one launch."""
    with torch.cuda.device_of(like):
        kernel[grid](*args, **_OPTIONS, **constants)


def _pass(kernel, plan, maps, *args, **constants):
    """Run a kernel on every span of some tensors like X."""
    images, channels, *size = maps[0].shape
    positions = math.prod(size)
    # Registers hold a tile of two tensors, or half a tile of three.
    parts = 2 if len(maps) > 2 else 1
    chunk = max(min(plan.height, _TILE // parts // plan.width), 1)
    _launch(
        kernel, (images * plan.spans,), maps[0], *maps, *args, channels,
        positions, plan.spans, CHUNK=chunk, WIDTH=plan.width,
        LAST=plan.is_last, UNIT=plan.unit,
        OFFSET=tl.int64 if channels * positions >= 2**31 else tl.int32,
        num_warps=max(parts * chunk * plan.width // _WARP_TILE, 1),
        **constants,
    )  # fmt: skip


def _on_vectors(kernel, steps, plan, x, *args, **constants):
    """Run the steps of a kernel on every image."""
    images, channels = x.shape[:2]
    height, inner = plan.height, max(channels // 2, 1)
    middle = triton.next_power_of_2(inner)
    rows = triton.next_power_of_2(plan.spans)
    each, blocks, launches = 1, 1, (_ALL.value,)
    if images >= _MANY:
        is_alone = channels <= _ALONE
    else:
        is_alone = channels <= _ALONE_FEW and height * plan.spans <= _MOST_SUMS
    if not is_alone:
        # Several images for a program, that share a block of a matrix.
        each = min(triton.cdiv(images, _GROUPS), 8)
        blocks = min(_BLOCKS, max(height // 16, 1))
        launches = range(steps)
    for step in launches:
        _launch(
            kernel, (triton.cdiv(images, each), blocks), x, *args, images,
            channels, inner, plan.spans, HEIGHT=height, INNER=middle,
            BLOCKS=blocks, EACH=each, STEP=step,
            MATRIX=min(_MATRIX, height * middle),
            SUMS=min(_SUMS, height // blocks * rows),
            num_warps=4 if height <= 32 else 8 if height <= 64 else 16,
            **constants,
        )  # fmt: skip


def _flags(spec):
    return dict(
        CHANNEL=spec.has_channel,
        SPATIAL=spec.has_spatial,
        SEQUENTIAL=spec.layout == 'sequential',
        OFFICIAL=spec.variant == 'official',
    )


def _wide(weights, spec):
    """The weights by name, float32."""
    return by_name([w.float().contiguous() for w in weights], spec)


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
    w, x = _wide(weights, spec), _dense(x)
    plan, flags = _plan(x), _flags(spec)
    images, channels, *size = x.shape
    positions = math.prod(size)
    maps, vectors = (
        x.new_empty(shape, dtype=torch.float32)
        for shape in saved_shapes(x, spec)
    )
    sums = maps.new_empty(images, plan.spans, 2, channels)
    peaks = maps.new_empty(images, plan.spans, 2)
    attention, spatial = _logits(maps, spec)
    steps = 6 if spec.layout == 'sequential' else 4
    _pass(_pool_kernel, plan, [x], w.ch_wq, 0, w.ch_bq, attention, sums, peaks)
    _on_vectors(
        _vectors_kernel, steps, plan, x, sums, peaks, vectors, w.ch_wv,
        w.ch_bv, w.ch_wz, w.ch_bz, w.ln_weight, w.ln_bias, w.sp_wq, w.sp_bq,
        w.sp_wv, w.sp_bv, w.mask_scale, positions, **flags,
    )  # fmt: skip
    if spec.variant == 'official':
        query = vectors[:, _QUERY.value * channels :]
        _pass(
            _pool_kernel, plan, [x], query, vectors.stride(0), None, spatial,
            sums, peaks,
        )  # fmt: skip
        _on_vectors(_focus_kernel, 1, plan, x, sums, peaks, vectors)
    _pass(_gate_kernel, plan, [x, y], vectors, spatial, w.mask_scale, **flags)
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
    w, x = _wide(weights, spec), _dense(x)
    plan, flags = _plan(x), _flags(spec)
    g = g.contiguous(
        memory_format=torch.channels_last
        if plan.is_last
        else torch.contiguous_format
    )
    # Row-major, however the weights lie; mask_scale, the last, has none.
    learnt = weights[: len(weights) - spec.has_mask_scale]
    dweights = [t.new_empty(t.shape, dtype=torch.float32) for t in learnt]
    d = by_name(dweights, spec)
    maps, vectors = maps.contiguous(), vectors.contiguous()
    images, channels = x.shape[:2]
    attention, spatial = _logits(maps, spec)
    dlogits = None if spatial is None else torch.empty_like(spatial)
    sums = vectors.new_empty(images, plan.spans, 2, channels)
    biases = vectors.new_empty(images, plan.spans)
    gradients = vectors.new_empty(images, _D_SLOTS.value * channels + 4)
    parts = vectors.new_empty(images, plan.spans, channels)
    steps = 5 if spec.layout == 'sequential' else 3
    _pass(
        _gate_backward_kernel, plan, [x, g], vectors, spatial, dlogits, sums,
        biases, w.mask_scale, **flags,
    )  # fmt: skip
    _on_vectors(
        _vectors_backward_kernel, steps, plan, x, sums, biases, vectors,
        gradients, w.ch_wv, w.ch_wz, w.ln_weight, w.sp_wq, w.sp_wv, w.sp_bv,
        w.mask_scale, **flags,
    )  # fmt: skip
    _pass(
        _input_backward_kernel, plan, [x, g, dx], vectors, gradients,
        attention, spatial, dlogits, w.ch_wq, parts, w.mask_scale, **flags,
    )  # fmt: skip
    inner = max(channels // 2, 1)
    blocks = triton.cdiv(inner, _BLOCK) * triton.cdiv(channels, _BLOCK)
    _launch(
        _weights_backward_kernel, (blocks, 8), x, vectors, gradients, parts,
        d.ch_wq, d.ch_bq, d.ch_wv, d.ch_bv, d.ch_wz, d.ch_bz, d.ln_weight,
        d.ln_bias, d.sp_wq, d.sp_bq, d.sp_wv, d.sp_bv, images, channels,
        inner, plan.spans, BLOCK=_BLOCK, ROWS=_MATRIX // _BLOCK,
        IMAGES=min(max(triton.next_power_of_2(images), 16), 64), num_warps=8,
        **flags,
    )  # fmt: skip
    return dx, [grad.to(t.dtype) for grad, t in zip(dweights, learnt)]


@triton.jit
def _span(
    channels, positions, spans, WIDTH: tl.constexpr, LAST: tl.constexpr,
    UNIT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The program's image and positions, and which of these exist.

    An image may lie further into a tensor than 32 bits count. The sizes come
    back such that the compiler sees that UNIT divides the length of a row.
    """
    program = tl.program_id(0)
    if LAST:
        channels = channels // UNIT * UNIT
    else:
        positions = positions // UNIT * UNIT
    p = (program % spans).to(OFFSET) * WIDTH + tl.arange(0, WIDTH)
    image = (program // spans).to(tl.int64)
    return image, p, p < positions, channels, positions


@triton.jit
def _offsets(c, p, channels, positions, LAST: tl.constexpr):
    """Where the elements of a tile are, from the start of their image."""
    if LAST:
        return c[:, None] + p[None, :] * channels
    return c[:, None] * positions + p[None, :]


@triton.jit
def _load(x, c, p, inside, channels, positions, LAST: tl.constexpr):
    """A tile of an image, zero where there is none."""
    tile = x + _offsets(c, p, channels, positions, LAST)
    both = (c < channels)[:, None] & inside[None, :]
    return tl.load(tile, mask=both, other=0.0).to(tl.float32)


@triton.jit
def _store(x, c, p, inside, channels, positions, value, LAST: tl.constexpr):
    tile = x + _offsets(c, p, channels, positions, LAST)
    both = (c < channels)[:, None] & inside[None, :]
    tl.store(tile, value.to(x.dtype.element_ty), mask=both)


@triton.jit
def _vector(v, c, length):
    """Some of the numbers of a vector, zero where there is none."""
    return tl.load(v + c, mask=c < length, other=0.0)


@triton.jit
def _project(
    x, query, centre, p, inside, channels, positions, CHUNK: tl.constexpr,
    WIDTH: tl.constexpr, LAST: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The products Σ_c query_c (x_cp - centre_c) of a span."""
    total = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, channels, CHUNK):
        c = first + tl.arange(0, CHUNK).to(OFFSET)
        q = _vector(query, c, channels)
        tile = _load(x, c, p, inside, channels, positions, LAST)
        if centre is not None:
            tile -= _vector(centre, c, channels)[:, None]
        total += tl.sum(q[:, None] * tile, 0)
    return total


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
    # -inf, because a difference to the peak of 0 may be too large for exp
    a = tl.load(logits + p, mask=inside, other=float('-inf'))
    if OFFICIAL:
        a = tl.exp(a - tl.load(scalars + _FOCUS_PEAK))
        a = a / tl.load(scalars + _FOCUS_WEIGHT)
    return factor * tl.sigmoid(a), a


@triton.jit
def _pool_kernel(
    x, query, query_stride, bias, logits, sums, peaks, channels, positions,
    spans, CHUNK: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
    UNIT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Pool each span of X by attention.

    Stores the logits and, for each span, the attended sum of X, the plain
    sum of X, the peak of the logits and the sum of the softmax's weights.
    Without a query, it stores only the plain sum.
    """
    image, p, inside, channels, positions = _span(
        channels, positions, spans, WIDTH, LAST, UNIT, OFFSET
    )
    part = tl.program_id(0).to(tl.int64)
    x += image * channels * positions
    if query is not None:
        offset = 0.0
        if bias is not None:
            offset = tl.load(bias)
        logit = offset + _project(
            x, query + image * query_stride, None, p, inside, channels,
            positions, CHUNK, WIDTH, LAST, OFFSET,
        )  # fmt: skip
        tl.store(logits + image * positions + p, logit, mask=inside)
        logit = tl.where(inside, logit, float('-inf'))
        peak = tl.max(logit, 0)
        a = tl.exp(logit - peak)
        tl.store(peaks + part * 2, peak)
        tl.store(peaks + part * 2 + 1, tl.sum(a, 0))
    sums += part * 2 * channels
    for first in range(0, channels, CHUNK):
        c = first + tl.arange(0, CHUNK).to(OFFSET)
        tile = _load(x, c, p, inside, channels, positions, LAST)
        if query is not None:
            tl.store(sums + c, tl.sum(a[None, :] * tile, 1), c < channels)
        tl.store(sums + channels + c, tl.sum(tile, 1), c < channels)


@triton.jit
def _attended(
    sums, peaks, c, channels, spans, COLUMNS: tl.constexpr,
    SPANS: tl.constexpr, CHANNEL: tl.constexpr,
):  # fmt: skip
    """Add up what the spans of an image have, for some channels.

    Returns the pooled X, the sum of X, and the peak of the logits and the sum
    of their weights. Without CHANNEL, only the second has a meaning.
    """
    context = tl.zeros((COLUMNS,), tl.float32)
    plain = tl.zeros((COLUMNS,), tl.float32)
    top = float('-inf')
    total = 0.0
    for first in range(0, spans, SPANS):
        s = (first + tl.arange(0, SPANS)).to(tl.int64)
        both = (s < spans)[:, None] & (c < channels)[None, :]
        part = sums + s[:, None] * 2 * channels + c[None, :]
        rows = tl.load(part + channels, mask=both, other=0.0)
        if CHANNEL:
            peak = tl.load(peaks + s * 2, mask=s < spans, other=float('-inf'))
            weight = _vector(peaks + 1, s * 2, spans * 2)
            attended = tl.load(part, mask=both, other=0.0)
            new = tl.maximum(top, tl.max(peak, 0))
            share = tl.exp(peak - new)
            shrink = tl.exp(top - new)
            context = context * shrink + tl.sum(attended * share[:, None], 0)
            total = total * shrink + tl.sum(weight * share, 0)
            top = new
        plain += tl.sum(rows, 0)
    return context / total, plain, top, total


@triton.jit
def _multiply(
    w, row, column, bias, x, y, rows, columns, block, BLOCKS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = W x + b, a block of every BLOCKS. The strides of W are its own."""
    j = tl.arange(0, COLUMNS)
    for first in range(block * ROWS, rows, BLOCKS * ROWS):
        k = first + tl.arange(0, ROWS)
        inside = (k < rows)[:, None] & (j < columns)[None, :]
        place = w + k[:, None] * row + j[None, :] * column
        tile = tl.load(place, mask=inside, other=0.0)
        offset = 0.0
        if bias is not None:
            offset = _vector(bias, k, rows)
        total = tl.sum(tile * x[None, :], 1) + offset
        tl.store(y + k, total, mask=k < rows)


@triton.jit
def _channel_mask(
    z, ln_weight, ln_bias, factor, c, channels, OFFICIAL: tl.constexpr
):
    """The mask of an image, and what LayerNorm makes of its logits z.

    Also by what LayerNorm divides.
    """
    z = _vector(z, c, channels)
    normed, deviation = z, 1.0
    if not OFFICIAL:
        weight = _vector(ln_weight, c, channels)
        bias = _vector(ln_bias, c, channels)
        z = tl.where(c < channels, z - tl.sum(z, 0) / channels, 0.0)
        deviation = tl.sqrt(tl.sum(z * z, 0) / channels + _EPS)
        normed = z / deviation
        z = normed * weight + bias
    return factor * tl.sigmoid(z), normed, deviation


@triton.jit
def _softmax(q, m, inner, OFFICIAL: tl.constexpr):
    """The softmax of a vector, which the authors' code leaves out."""
    t = _vector(q, m, inner)
    if not OFFICIAL:
        t = tl.where(m < inner, t, float('-inf'))
        t = tl.exp(t - tl.max(t, 0))
        t = t / tl.sum(t, 0)
    return t


@triton.jit
def _vectors_kernel(
    sums, peaks, vectors, ch_wv, ch_bv, ch_wz, ch_bz, ln_weight, ln_bias,
    sp_wq, sp_bq, sp_wv, sp_bv, mask_scale, positions, images, channels, inner,
    spans, CHANNEL: tl.constexpr, SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr, OFFICIAL: tl.constexpr, HEIGHT: tl.constexpr,
    INNER: tl.constexpr, BLOCKS: tl.constexpr, EACH: tl.constexpr,
    STEP: tl.constexpr, MATRIX: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Compute the channel mask and the spatial query of images.

    Step by step: what each step stores, the next one loads. Steps in one
    launch have barriers between them.
    """
    block = tl.program_id(1)
    c = tl.arange(0, HEIGHT)
    m = tl.arange(0, INNER)
    factor = _factor(mask_scale)
    # In the sequential layout, the spatial mask comes after the other.
    LATER: tl.constexpr = 2 if SEQUENTIAL else 0
    start = tl.program_id(0) * EACH
    for i in range(0, tl.minimum(images - start, EACH)):
        image = start.to(tl.int64) + i
        v = vectors + image * (_SLOTS * channels + 8)
        scalars = v + _SLOTS * channels
        z, q = v + _CHANNEL * channels, v + _SOFTMAX * channels
        if STEP == 0 or STEP == _ALL:
            COLUMNS: tl.constexpr = HEIGHT // BLOCKS
            b = block * COLUMNS + tl.arange(0, COLUMNS)
            context, plain, top, weight = _attended(
                sums + image * spans * 2 * channels,
                peaks + image * spans * 2, b, channels, spans, COLUMNS,
                SUMS // COLUMNS, CHANNEL,
            )  # fmt: skip
            # Slots that the layout does not use are zero.
            for slot in range(0, _SLOTS):
                tl.store(v + slot * channels + b, 0.0, mask=b < channels)
            tl.store(scalars + tl.arange(0, 8), 0.0)
            tl.debug_barrier()
            mean = v + _MEAN * channels + b
            tl.store(mean, plain / positions, mask=b < channels)
            if CHANNEL:
                tl.store(scalars + _PEAK, top)
                tl.store(scalars + _WEIGHT, weight)
                tl.store(v + _CONTEXT * channels + b, context, b < channels)
        if CHANNEL and (STEP == 1 or STEP == _ALL):
            tl.debug_barrier()
            context = _vector(v + _CONTEXT * channels, c, channels)
            _multiply(
                ch_wv, channels, 1, ch_bv, context, v + _VALUE * channels,
                inner, channels, block, BLOCKS, MATRIX // HEIGHT, HEIGHT,
            )  # fmt: skip
        if CHANNEL and (STEP == 2 or STEP == _ALL):
            tl.debug_barrier()
            value = _vector(v + _VALUE * channels, m, inner)
            _multiply(
                ch_wz, inner, 1, ch_bz, value, z, channels, inner, block,
                BLOCKS, MATRIX // INNER, INNER,
            )  # fmt: skip
        if SPATIAL and (STEP == LATER + 1 or STEP == _ALL):
            tl.debug_barrier()
            mean = _vector(v + _MEAN * channels, c, channels)
            if SEQUENTIAL:
                channel, _, _ = _channel_mask(
                    z, ln_weight, ln_bias, factor, c, channels, OFFICIAL
                )
                mean *= channel
            _multiply(
                sp_wq, channels, 1, sp_bq, mean, q, inner, channels, block,
                BLOCKS, MATRIX // HEIGHT, HEIGHT,
            )  # fmt: skip
        if SPATIAL and (STEP == LATER + 2 or STEP == _ALL):
            tl.debug_barrier()
            base = v + (_BASE if SEQUENTIAL else _QUERY) * channels
            _multiply(
                sp_wv, 1, channels, None, _softmax(q, m, inner, OFFICIAL),
                base, channels, inner, block, BLOCKS, MATRIX // INNER, INNER,
            )  # fmt: skip
        if STEP == LATER + 3 or STEP == _ALL:
            tl.debug_barrier()
            if block == 0:
                if CHANNEL:
                    channel, normed, deviation = _channel_mask(
                        z, ln_weight, ln_bias, factor, c, channels, OFFICIAL
                    )
                if SPATIAL and not OFFICIAL:
                    bias = _vector(sp_bv, m, inner)
                    t = _softmax(q, m, inner, OFFICIAL)
                if SEQUENTIAL:
                    query = (
                        _vector(v + _BASE * channels, c, channels) * channel
                    )
                tl.debug_barrier()  # all have loaded what is replaced now
                if CHANNEL:
                    tl.store(z + c, channel, mask=c < channels)
                if CHANNEL and not OFFICIAL:
                    tl.store(v + _NORMED * channels + c, normed, c < channels)
                    tl.store(scalars + _DEVIATION, deviation)
                if SPATIAL and not OFFICIAL:
                    tl.store(q + m, t, mask=m < inner)
                    tl.store(scalars + _BIAS, tl.sum(t * bias, 0))
                if SEQUENTIAL:
                    tl.store(v + _QUERY * channels + c, query, c < channels)
                tl.debug_barrier()


@triton.jit
def _focus_kernel(
    sums, peaks, vectors, images, channels, inner, spans, HEIGHT: tl.constexpr,
    INNER: tl.constexpr, BLOCKS: tl.constexpr, EACH: tl.constexpr,
    STEP: tl.constexpr, MATRIX: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Pool X by the softmax of the spatial logits; keep its peak and sum."""
    COLUMNS: tl.constexpr = HEIGHT // BLOCKS
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.program_id(0) * EACH
    for i in range(0, tl.minimum(images - start, EACH)):
        image = start.to(tl.int64) + i
        v = vectors + image * (_SLOTS * channels + 8)
        scalars = v + _SLOTS * channels
        focus, _, top, weight = _attended(
            sums + image * spans * 2 * channels, peaks + image * spans * 2,
            c, channels, spans, COLUMNS, SUMS // COLUMNS, True,
        )  # fmt: skip
        tl.store(v + _FOCUS * channels + c, focus, mask=c < channels)
        tl.store(scalars + _FOCUS_PEAK, top)
        tl.store(scalars + _FOCUS_WEIGHT, weight)


@triton.jit
def _gate_kernel(
    x, y, vectors, logits, mask_scale, channels, positions, spans,
    CHANNEL: tl.constexpr, SPATIAL: tl.constexpr, SEQUENTIAL: tl.constexpr,
    OFFICIAL: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
    LAST: tl.constexpr, UNIT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The spatial mask, and X times both."""
    image, p, inside, channels, positions = _span(
        channels, positions, spans, WIDTH, LAST, UNIT, OFFSET
    )
    x += image * channels * positions
    y += image * channels * positions
    v = vectors + image * (_SLOTS * channels + 8)
    scalars = v + _SLOTS * channels
    factor = _factor(mask_scale)
    if SPATIAL:
        logits += image * positions
        if OFFICIAL:
            spatial, _ = _spatial_mask(
                logits, p, inside, scalars, factor, OFFICIAL
            )
        else:
            logit = tl.load(scalars + _BIAS) + _project(
                x, v + _QUERY * channels, None, p, inside, channels,
                positions, CHUNK, WIDTH, LAST, OFFSET,
            )  # fmt: skip
            tl.store(logits + p, logit, mask=inside)
            spatial = factor * tl.sigmoid(logit)
    for first in range(0, channels, CHUNK):
        c = first + tl.arange(0, CHUNK).to(OFFSET)
        tile = _load(x, c, p, inside, channels, positions, LAST)
        if CHANNEL:
            ch = _vector(v + _CHANNEL * channels, c, channels)
        if not SPATIAL:
            gate = ch[:, None]
        elif not CHANNEL:
            gate = spatial[None, :]
        elif SEQUENTIAL:
            gate = ch[:, None] * spatial[None, :]
        else:
            gate = ch[:, None] + spatial[None, :]
        _store(y, c, p, inside, channels, positions, tile * gate, LAST)


@triton.jit
def _gate_backward_kernel(
    x, g, vectors, logits, dlogits, sums, biases, mask_scale, channels,
    positions, spans, CHANNEL: tl.constexpr, SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr, OFFICIAL: tl.constexpr, CHUNK: tl.constexpr,
    WIDTH: tl.constexpr, LAST: tl.constexpr, UNIT: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """The gradient of the spatial logits, at each position.

    If OFFICIAL, without the term that the softmax's gradient subtracts. And
    for each span, its part of the gradients of the channel mask, the spatial
    query and its bias.
    """
    image, p, inside, channels, positions = _span(
        channels, positions, spans, WIDTH, LAST, UNIT, OFFSET
    )
    part = tl.program_id(0).to(tl.int64)
    x += image * channels * positions
    g += image * channels * positions
    v = vectors + image * (_SLOTS * channels + 8)
    factor = _factor(mask_scale)
    if SPATIAL:
        spatial, a = _spatial_mask(
            logits + image * positions, p, inside, v + _SLOTS * channels,
            factor, OFFICIAL,
        )  # fmt: skip
        dz = tl.zeros((WIDTH,), tl.float32)
        for first in range(0, channels, CHUNK):
            c = first + tl.arange(0, CHUNK).to(OFFSET)
            product = _load(x, c, p, inside, channels, positions, LAST)
            product *= _load(g, c, p, inside, channels, positions, LAST)
            if SEQUENTIAL:
                ch = _vector(v + _CHANNEL * channels, c, channels)
                product *= ch[:, None]
            dz += tl.sum(product, 0)
        dz *= spatial * (1 - spatial / factor)
        if OFFICIAL:
            dz *= a
        tl.store(dlogits + image * positions + p, dz, mask=inside)
        tl.store(biases + part, tl.sum(dz, 0))
    sums += part * 2 * channels
    for first in range(0, channels, CHUNK):
        c = first + tl.arange(0, CHUNK).to(OFFSET)
        tile = _load(x, c, p, inside, channels, positions, LAST)
        if CHANNEL:
            product = tile * _load(g, c, p, inside, channels, positions, LAST)
            if SEQUENTIAL:
                product *= spatial[None, :]
            tl.store(sums + c, tl.sum(product, 1), mask=c < channels)
        if SPATIAL:
            of_query = tl.sum(dz[None, :] * tile, 1)
            tl.store(sums + channels + c, of_query, mask=c < channels)


@triton.jit
def _vectors_backward_kernel(
    sums, biases, vectors, gradients, ch_wv, ch_wz, ln_weight, sp_wq, sp_wv,
    sp_bv, mask_scale, images, channels, inner, spans, CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr, SEQUENTIAL: tl.constexpr, OFFICIAL: tl.constexpr,
    HEIGHT: tl.constexpr, INNER: tl.constexpr, BLOCKS: tl.constexpr,
    EACH: tl.constexpr, STEP: tl.constexpr, MATRIX: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """Backward of ``_vectors_kernel``, in steps like it."""
    block = tl.program_id(1)
    c = tl.arange(0, HEIGHT)
    m = tl.arange(0, INNER)
    factor = _factor(mask_scale)
    # In the sequential layout, the channel mask has a gradient by the other.
    LATER: tl.constexpr = 2 if SEQUENTIAL else 0
    start = tl.program_id(0) * EACH
    for i in range(0, tl.minimum(images - start, EACH)):
        image = start.to(tl.int64) + i
        v = vectors + image * (_SLOTS * channels + 8)
        d = gradients + image * (_D_SLOTS * channels + 4)
        d_bias = d + _D_SLOTS * channels
        if STEP == 0 or STEP == _ALL:
            COLUMNS: tl.constexpr = HEIGHT // BLOCKS
            SPANS: tl.constexpr = SUMS // COLUMNS
            b = block * COLUMNS + tl.arange(0, COLUMNS)
            dchannel = tl.zeros((COLUMNS,), tl.float32)
            dquery = tl.zeros((COLUMNS,), tl.float32)
            dbias = 0.0
            channel = _vector(v + _CHANNEL * channels, b, channels)
            mean = _vector(v + _MEAN * channels, b, channels)
            focus = _vector(v + _FOCUS * channels, b, channels)
            base = _vector(v + _BASE * channels, b, channels)
            for first in range(0, spans, SPANS):
                s = first + tl.arange(0, SPANS)
                both = (s < spans)[:, None] & (b < channels)[None, :]
                part = sums + (image * spans + s)[:, None] * 2 * channels
                part += b[None, :]
                if SPATIAL:
                    of_bias = _vector(biases + image * spans, s, spans)
                    of_query = tl.load(part + channels, both, other=0.0)
                if CHANNEL:
                    of_channel = tl.load(part, mask=both, other=0.0)
                    dchannel += tl.sum(of_channel, 0)
                if SPATIAL:
                    dquery += tl.sum(of_query, 0)
                    dbias += tl.sum(of_bias, 0)
            if OFFICIAL:
                # The softmax's gradient subtracts dbias * focus. dbias is a
                # sum over all positions, so it is known only here.
                dquery -= dbias * focus
            if SEQUENTIAL:
                dchannel += dquery * base
                dquery *= channel
                mean *= channel
            tl.store(d_bias, dbias)
            tl.store(d + _D_MASK * channels + b, dchannel, mask=b < channels)
            tl.store(d + _D_QUERY * channels + b, dquery, mask=b < channels)
            tl.store(d + _GATED_MEAN * channels + b, mean, mask=b < channels)
        if SPATIAL and (STEP == 1 or STEP == _ALL):
            tl.debug_barrier()
            dquery = _vector(d + _D_QUERY * channels, c, channels)
            _multiply(
                sp_wv, channels, 1, None, dquery, d + _D_LOGITS * channels,
                inner, channels, block, BLOCKS, MATRIX // HEIGHT, HEIGHT,
            )  # fmt: skip
        if SPATIAL and (STEP == 2 or STEP == _ALL):
            tl.debug_barrier()
            dt = _vector(d + _D_LOGITS * channels, m, inner)
            if not OFFICIAL:
                dbias = tl.load(d_bias)
                t = _vector(v + _SOFTMAX * channels, m, inner)
                dt += dbias * _vector(sp_bv, m, inner)
                dt = t * (dt - tl.sum(t * dt, 0))
                tl.store(d + _D_SP_BV * channels + m, dbias * t, m < inner)
            tl.store(d + _D_SOFTMAX * channels + m, dt, mask=m < inner)
            _multiply(
                sp_wq, 1, channels, None, dt, d + _D_GATED * channels,
                channels, inner, block, BLOCKS, MATRIX // INNER, INNER,
            )  # fmt: skip
        if CHANNEL and (STEP == LATER + 1 or STEP == _ALL):
            tl.debug_barrier()
            dz = _vector(d + _D_MASK * channels, c, channels)
            channel = _vector(v + _CHANNEL * channels, c, channels)
            if SEQUENTIAL:
                dgated = _vector(d + _D_GATED * channels, c, channels)
                dz += dgated * _vector(v + _MEAN * channels, c, channels)
                dmean = d + _D_MEAN * channels + c
                tl.store(dmean, dgated * channel, mask=c < channels)
            dz *= channel * (1 - channel / factor)
            if not OFFICIAL:
                normed = _vector(v + _NORMED * channels, c, channels)
                weight = _vector(ln_weight, c, channels)
                deviation = tl.load(v + _SLOTS * channels + _DEVIATION)
                gamma = d + _D_GAMMA * channels + c
                tl.store(gamma, dz * normed, mask=c < channels)
                tl.store(d + _D_BETA * channels + c, dz, mask=c < channels)
                dz *= weight
                slope = tl.sum(dz * normed, 0) / channels
                dz = dz - tl.sum(dz, 0) / channels - slope * normed
                dz = dz / deviation
            tl.store(d + _D_CHANNEL * channels + c, dz, mask=c < channels)
            _multiply(
                ch_wz, 1, inner, None, dz, d + _D_VALUE * channels, inner,
                channels, block, BLOCKS, MATRIX // HEIGHT, HEIGHT,
            )  # fmt: skip
        if CHANNEL and (STEP == LATER + 2 or STEP == _ALL):
            tl.debug_barrier()
            dvalue = _vector(d + _D_VALUE * channels, m, inner)
            _multiply(
                ch_wv, 1, channels, None, dvalue, d + _D_CONTEXT * channels,
                channels, inner, block, BLOCKS, MATRIX // INNER, INNER,
            )  # fmt: skip


@triton.jit
def _input_backward_kernel(
    x, g, dx, vectors, gradients, attention, logits, dlogits, ch_wq, parts,
    mask_scale, channels, positions, spans, CHANNEL: tl.constexpr,
    SPATIAL: tl.constexpr, SEQUENTIAL: tl.constexpr, OFFICIAL: tl.constexpr,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr,
    UNIT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The gradient of X and, of each span, of the attention's query."""
    image, p, inside, channels, positions = _span(
        channels, positions, spans, WIDTH, LAST, UNIT, OFFSET
    )
    x += image * channels * positions
    g += image * channels * positions
    dx += image * channels * positions
    v = vectors + image * (_SLOTS * channels + 8)
    scalars = v + _SLOTS * channels
    d = gradients + image * (_D_SLOTS * channels + 4)
    factor = _factor(mask_scale)
    place = image * positions + p
    if SPATIAL:
        dz = tl.load(dlogits + place, mask=inside, other=0.0)
        spatial, a = _spatial_mask(
            logits + image * positions, p, inside, scalars, factor, OFFICIAL
        )
        if OFFICIAL:
            dz -= a * tl.load(d + _D_SLOTS * channels)
    if CHANNEL:
        logit = tl.load(attention + place, mask=inside, other=float('-inf'))
        a = tl.exp(logit - tl.load(scalars + _PEAK))
        a = a / tl.load(scalars + _WEIGHT)
        # What the mean gradient takes off is that of the pooled X.
        da = a * _project(
            x, d + _D_CONTEXT * channels, v + _CONTEXT * channels, p, inside,
            channels, positions, CHUNK, WIDTH, LAST, OFFSET,
        )  # fmt: skip
    part = tl.program_id(0).to(tl.int64) * channels
    for first in range(0, channels, CHUNK):
        c = first + tl.arange(0, CHUNK).to(OFFSET)
        if CHANNEL:
            ch = _vector(v + _CHANNEL * channels, c, channels)
            dc = _vector(d + _D_CONTEXT * channels, c, channels)
            wq = _vector(ch_wq, c, channels)
            tile = _load(x, c, p, inside, channels, positions, LAST)
        if SPATIAL:
            q = _vector(v + _QUERY * channels, c, channels)
            dmean = d + (_D_MEAN if SEQUENTIAL else _D_GATED) * channels
            even = _vector(dmean, c, channels) / positions
        out = _load(g, c, p, inside, channels, positions, LAST)
        if not SPATIAL:
            out *= ch[:, None]
        elif not CHANNEL:
            out *= spatial[None, :]
        elif SEQUENTIAL:
            out *= ch[:, None] * spatial[None, :]
        else:
            out *= ch[:, None] + spatial[None, :]
        if SPATIAL:
            out += dz[None, :] * q[:, None] + even[:, None]
        if CHANNEL:
            of_query = tl.sum(da[None, :] * tile, 1)
            tl.store(parts + part + c, of_query, mask=c < channels)
            out += a[None, :] * dc[:, None] + da[None, :] * wq[:, None]
        _store(dx, c, p, inside, channels, positions, out, LAST)


@triton.jit
def _outer_products(
    a, a_stride, b, b_stride, dw, db, images, rows, columns,
    BLOCK: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """A block of dW = Σ_n a_n b_nᵀ, and of db = Σ_n a_n, if there is one."""
    across = tl.cdiv(columns, BLOCK)
    k = tl.program_id(0) // across * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    plain = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, images, IMAGES):
        n = (first + tl.arange(0, IMAGES)).to(tl.int64)[:, None]
        left = tl.load(
            a + n * a_stride + k[None, :],
            mask=(n < images) & (k < rows)[None, :],
            other=0.0,
        )
        right = tl.load(
            b + n * b_stride + j[None, :],
            mask=(n < images) & (j < columns)[None, :],
            other=0.0,
        )
        total += tl.dot(tl.trans(left), right, input_precision='ieee')
        plain += tl.sum(left, 0)
    inside = (k < rows)[:, None] & (j < columns)[None, :]
    tl.store(dw + k[:, None] * columns + j[None, :], total, mask=inside)
    if db is not None:
        last = tl.where(tl.program_id(0) % across == 0, rows, 0)
        tl.store(db + k, plain, mask=k < last)


@triton.jit
def _sum(
    a, a_stride, to, count, length, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """A block of the sum of rows."""
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, ROWS):
        n = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        both = (n < count) & (j < length)[None, :]
        rows = tl.load(a + n * a_stride + j[None, :], mask=both, other=0.0)
        total += tl.sum(rows, 0)
    tl.store(to + j, total, mask=j < length)


@triton.jit
def _weights_backward_kernel(
    vectors, gradients, parts, ch_wq, ch_bq, ch_wv, ch_bv, ch_wz, ch_bz,
    ln_weight, ln_bias, sp_wq, sp_bq, sp_wv, sp_bv, images, channels, inner,
    spans, CHANNEL: tl.constexpr, SPATIAL: tl.constexpr,
    SEQUENTIAL: tl.constexpr, OFFICIAL: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """The gradients of the weights.

    The second program index selects which of them a program computes.
    """
    v, vn = vectors, _SLOTS * channels + 8
    d, dn = gradients, _D_SLOTS * channels + 4
    which = tl.program_id(1)
    if CHANNEL:
        if which == 0:
            _outer_products(
                d + _D_VALUE * channels, dn, v + _CONTEXT * channels, vn,
                ch_wv, ch_bv, images, inner, channels, BLOCK, IMAGES,
            )  # fmt: skip
        if which == 1:
            _outer_products(
                d + _D_CHANNEL * channels, dn, v + _VALUE * channels, vn,
                ch_wz, ch_bz, images, channels, inner, BLOCK, IMAGES,
            )  # fmt: skip
        if which == 2:
            _sum(parts, channels, ch_wq, images * spans, channels, BLOCK, ROWS)
            if not OFFICIAL:
                # The bias shifts all logits alike, so the softmax stays.
                tl.store(ch_bq, 0.0)
        if not OFFICIAL:
            if which == 3:
                _sum(
                    d + _D_GAMMA * channels, dn, ln_weight, images, channels,
                    BLOCK, ROWS,
                )  # fmt: skip
            if which == 4:
                _sum(
                    d + _D_BETA * channels, dn, ln_bias, images, channels,
                    BLOCK, ROWS,
                )  # fmt: skip
    if SPATIAL:
        if which == 5:
            _outer_products(
                d + _D_SOFTMAX * channels, dn, d + _GATED_MEAN * channels, dn,
                sp_wq, sp_bq, images, inner, channels, BLOCK, IMAGES,
            )  # fmt: skip
        if which == 6:
            _outer_products(
                v + _SOFTMAX * channels, vn, d + _D_QUERY * channels, dn,
                sp_wv, None, images, inner, channels, BLOCK, IMAGES,
            )  # fmt: skip
        if not OFFICIAL:
            if which == 7:
                _sum(
                    d + _D_SP_BV * channels, dn, sp_bv, images, inner, BLOCK,
                    ROWS,
                )  # fmt: skip
