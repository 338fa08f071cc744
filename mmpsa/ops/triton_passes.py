"""The passes over X as Triton kernels, for the GPUs that Triton compiles for.

They take and return what those of :mod:`mmpsa.ops.torch_passes` do, but X and
its gradients in their own dtype, float32, bfloat16 or float16, and with any
strides; they are widened in registers. Everything else is float32.

A program goes through a span of the positions of one image and holds all
channels of some of them at a time, so that what sums over channels needs no
second look at X. What sums over positions, it sums over its span; the spans
are put together afterwards.
"""

from typing import NamedTuple, Optional, Sequence, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

# Elements of X that a program holds at a time, and a warp of them.
_TILE = 4096
_WARP_TILE = 512
# Positions that it holds at least: a sector of memory is 32 bytes.
_LEAST_WIDTH = 8
# Programs for each multiprocessor: some compute while others wait for memory.
_PROGRAMS = 4
_MOST_SPLITS = 512
# Channels at a time where the spans of an image are put together.
_COMBINED = 16


class _Plan(NamedTuple):
    """How the positions of N images are dealt out to programs."""

    splits: int  # programs an image
    span: int  # positions a program
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


def _launch(
    kernel: triton.JITFunction,
    plan: _Plan,
    maps: Sequence[Tensor],
    *args,
    **constants,
) -> None:
    """Run a kernel on every span.

    Args:
        kernel: Takes the maps, each with its strides, ``args``, the sizes of
            the plan, ``constants``.
        plan (_Plan): For the maps.
        maps (Sequence[Tensor]): All of the N×C×P.
        args: Contiguous tensors, None, numbers.
        constants: Constants of the kernel.
    """
    images, channels, positions = maps[0].shape
    reach = max(
        (channels - 1) * map.stride(1) + (positions - 1) * map.stride(2)
        for map in maps
    )
    with torch.cuda.device_of(maps[0]):
        kernel[(images * plan.splits,)](
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


def _row(vectors):
    """Vectors of an image as a pointer and the stride between images."""
    if vectors.stride(0) == 0:
        return vectors[0].contiguous(), 0
    return vectors.contiguous(), vectors.shape[1]


def _contiguous(*tensors):
    return [t if t is None else t.contiguous() for t in tensors]


def _vectors(x):
    return x.new_empty(x.shape[:2], dtype=torch.float32)


def _map(x):
    return x.new_empty(x.shape[::2], dtype=torch.float32)


def _none(x):
    return x.new_empty(0, dtype=torch.float32)


def prepare(x: Tensor) -> Tensor:
    """X, or a gradient, as these passes want it: as it is."""
    return x


@custom_op('mmpsa::pool', mutates_args=())
def pool(
    x: Tensor, query: Tensor, bias: Optional[Tensor], scale: Optional[Tensor]
) -> Tuple[Tensor, Tensor, Tensor]:
    """As :func:`mmpsa.ops.torch_passes.pool`."""
    images, channels, positions = x.shape
    plan = _plan(x)
    logits = _map(x)
    sums = logits.new_empty(images, plan.splits, 2, channels)
    peaks = logits.new_empty(images, plan.splits, 2)
    query, query_stride = _row(query)
    bias, bias_stride = (None, 0) if bias is None else _row(bias)
    (scale,) = _contiguous(scale)
    _launch(
        _pool_kernel,
        plan,
        [x],
        query,
        query_stride,
        bias,
        bias_stride,
        scale,
        logits,
        sums,
        peaks,
    )
    context, mean = _vectors(x), _vectors(x)
    parts = triton.cdiv(channels, _COMBINED)
    with torch.cuda.device_of(x):
        _combine_kernel[(images * parts,)](
            sums,
            peaks,
            scale,
            context,
            mean,
            channels,
            positions,
            plan.splits,
            parts,
            HEIGHT=_COMBINED,
            SPLITS=triton.next_power_of_2(plan.splits),
        )
    return context, mean, logits


@pool.register_fake
def _(x, query, bias, scale):
    return _vectors(x), _vectors(x), _map(x)


@custom_op('mmpsa::gate', mutates_args=())
def gate(
    x: Tensor,
    channel: Optional[Tensor],
    query: Optional[Tensor],
    bias: Optional[Tensor],
    mask_scale: float,
    layout: str,
) -> Tuple[Tensor, Tensor]:
    """As :func:`mmpsa.ops.torch_passes.gate`."""
    y = torch.empty_like(x)
    z = _none(x) if layout == 'channel' else _map(x)
    channel, query, bias = _contiguous(channel, query, bias)
    positions = x.shape[2]
    of_position = bias is not None and bias.shape[1] == positions
    _launch(
        _gate_kernel,
        _plan(x),
        [x, y],
        channel,
        query,
        bias,
        None if layout == 'channel' else z,
        mask_scale,
        MAP=of_position,
        SEQUENTIAL=layout == 'sequential',
    )
    return y, z


@gate.register_fake
def _(x, channel, query, bias, mask_scale, layout):
    z = _none(x) if layout == 'channel' else _map(x)
    return torch.empty_like(x), z


@custom_op('mmpsa::gate_backward', mutates_args=())
def gate_backward(
    x: Tensor,
    g: Tensor,
    channel: Optional[Tensor],
    z: Tensor,
    mask_scale: float,
    layout: str,
    focus: Optional[Tensor],
) -> Tuple[Tensor, Tensor, Tensor]:
    """As :func:`mmpsa.ops.torch_passes.gate_backward`."""
    plan = _plan(x)
    has_spatial = layout != 'channel'
    dlogits = _map(x) if has_spatial else _none(x)
    sums = z.new_empty(2, len(x), plan.splits, x.shape[1])
    channel, z = _contiguous(channel, z)
    _launch(
        _gate_backward_kernel,
        plan,
        [x, g],
        channel,
        z if has_spatial else None,
        dlogits,
        sums[0],
        sums[1],
        mask_scale,
        SEQUENTIAL=layout == 'sequential',
        SOFTMAX=focus is not None,
    )
    dchannel = _none(x) if channel is None else sums[0].sum(1)
    dquery = sums[1].sum(1) if has_spatial else _none(x)
    if focus is not None:
        # The kernel could weight the gradients of the softmax, but not take
        # off yet what they sum to.
        offset = (z * dlogits).sum(-1, keepdim=True)
        dlogits = z * (dlogits - offset)
        dquery = dquery - offset * focus
    return dchannel, dquery, dlogits


@gate_backward.register_fake
def _(x, g, channel, z, mask_scale, layout, focus):
    has_spatial = layout != 'channel'
    return (
        _none(x) if channel is None else _vectors(x),
        _vectors(x) if has_spatial else _none(x),
        _map(x) if has_spatial else _none(x),
    )


@custom_op('mmpsa::input_backward', mutates_args=())
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
    """As :func:`mmpsa.ops.torch_passes.input_backward`."""
    plan = _plan(x)
    dx = torch.empty_like(x)
    stride, sums = 0, None
    if pool_query is not None:
        pool_query, stride = _row(pool_query)
        sums = z.new_empty(len(x), plan.splits, x.shape[1])
    _launch(
        _input_backward_kernel,
        plan,
        [x, g, dx],
        *_contiguous(channel, z, dlogits, query, dmean, a, dcontext),
        pool_query,
        stride,
        *_contiguous(context),
        sums,
        mask_scale,
        SEQUENTIAL=layout == 'sequential',
    )
    return dx, _none(x) if sums is None else sums.sum(1)


@input_backward.register_fake
def _(
    x,
    g,
    channel,
    z,
    mask_scale,
    layout,
    dlogits,
    query,
    dmean,
    a,
    dcontext,
    pool_query,
    context,
):
    dquery = _none(x) if pool_query is None else _vectors(x)
    return torch.empty_like(x), dquery


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
def _pool_kernel(
    x,
    xn,
    xc,
    xp,
    query,
    query_stride,
    bias,
    bias_stride,
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
    """Logits, and of each span the sums by attention, with online softmax."""
    image, start, stop = _span(positions, splits, span)
    c = tl.arange(0, HEIGHT).to(OFFSET)
    valid = c < channels
    q = tl.load(query + image * query_stride + c, mask=valid, other=0.0)
    b = 0.0
    if bias is not None:
        b = tl.load(bias + image * bias_stride)
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + image)
    weighted = tl.zeros((HEIGHT, WIDTH), tl.float32)
    plain = tl.zeros((HEIGHT, WIDTH), tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    peak = float('-inf')
    for first in range(start, stop, WIDTH):
        p = first + tl.arange(0, WIDTH).to(OFFSET)
        inside = p < stop
        tile = _load(
            x, xn, xc, xp, image, c, p, valid[:, None] & inside[None, :]
        )
        logit = tl.sum(q[:, None] * tile, 0) + b
        tl.store(logits + image * positions + p, logit, mask=inside)
        logit = tl.where(inside, logit, float('-inf'))
        top = tl.maximum(peak, tl.max(logit, 0))
        # The difference first: the product may be too large.
        shrink = tl.exp((peak - top) * factor)
        a = tl.exp((logit - top) * factor)
        weighted = weighted * shrink + a[None, :] * tile
        total = total * shrink + a
        plain += tile
        peak = top
    part = tl.program_id(0).to(tl.int64)
    sums += part * 2 * channels + c
    tl.store(sums, tl.sum(weighted, 1), mask=valid)
    tl.store(sums + channels, tl.sum(plain, 1), mask=valid)
    tl.store(peaks + part * 2, peak)
    tl.store(peaks + part * 2 + 1, tl.sum(total, 0))


@triton.jit
def _combine_kernel(
    sums,
    peaks,
    scale,
    context,
    mean,
    channels,
    positions,
    splits,
    parts,
    HEIGHT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """From the sums of the spans to those of the images."""
    image = (tl.program_id(0) // parts).to(tl.int64)
    c = tl.program_id(0) % parts * HEIGHT + tl.arange(0, HEIGHT)
    s = tl.arange(0, SPLITS)
    exists = s < splits
    part = image * splits + s
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + image)
    peak = tl.load(peaks + part * 2, mask=exists, other=float('-inf'))
    total = tl.load(peaks + part * 2 + 1, mask=exists, other=0.0)
    share = tl.exp((peak - tl.max(peak, 0)) * factor)
    inside = exists[:, None] & (c < channels)[None, :]
    sums += part[:, None] * 2 * channels + c[None, :]
    weighted = tl.load(sums, mask=inside, other=0.0)
    plain = tl.load(sums + channels, mask=inside, other=0.0)
    weighted = tl.sum(weighted * share[:, None], 0) / tl.sum(total * share, 0)
    place = image * channels + c
    tl.store(context + place, weighted, mask=c < channels)
    tl.store(mean + place, tl.sum(plain, 0) / positions, mask=c < channels)


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
    channel,
    query,
    bias,
    z,
    mask_scale,
    channels,
    positions,
    splits,
    span,
    MAP: tl.constexpr,
    SEQUENTIAL: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The spatial mask, and X times both."""
    image, start, stop = _span(positions, splits, span)
    c = tl.arange(0, HEIGHT).to(OFFSET)
    valid = c < channels
    row = image * channels + c
    if channel is not None:
        ch = tl.load(channel + row, mask=valid, other=0.0)
    if query is not None:
        q = tl.load(query + row, mask=valid, other=0.0)
    for first in range(start, stop, WIDTH):
        p = first + tl.arange(0, WIDTH).to(OFFSET)
        inside = p < stop
        both = valid[:, None] & inside[None, :]
        tile = _load(x, xn, xc, xp, image, c, p, both)
        if z is None:
            out = tile * ch[:, None]
        else:
            if MAP:
                logit = tl.load(
                    bias + image * positions + p, mask=inside, other=0.0
                )
            else:
                logit = tl.load(bias + image)
            if query is not None:
                logit += tl.sum(q[:, None] * tile, 0)
            tl.store(z + image * positions + p, logit, mask=inside)
            spatial = (mask_scale * tl.sigmoid(logit))[None, :]
            if channel is None:
                out = tile * spatial
            elif SEQUENTIAL:
                out = tile * ch[:, None] * spatial
            else:
                out = tile * ch[:, None] + tile * spatial
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
    channel,
    z,
    dlogits,
    dchannel,
    dquery,
    mask_scale,
    channels,
    positions,
    splits,
    span,
    SEQUENTIAL: tl.constexpr,
    SOFTMAX: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """Gradients of the masks and, of each span, of vectors."""
    image, start, stop = _span(positions, splits, span)
    c = tl.arange(0, HEIGHT).to(OFFSET)
    valid = c < channels
    if SEQUENTIAL:
        ch = tl.load(channel + image * channels + c, mask=valid, other=0.0)
    of_channel = tl.zeros((HEIGHT, WIDTH), tl.float32)
    of_query = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for first in range(start, stop, WIDTH):
        p = first + tl.arange(0, WIDTH).to(OFFSET)
        inside = p < stop
        both = valid[:, None] & inside[None, :]
        tile = _load(x, xn, xc, xp, image, c, p, both)
        product = tile * _load(g, gn, gc, gp, image, c, p, both)
        if z is None:
            of_channel += product
        else:
            place = image * positions + p
            weight = tl.load(z + place, mask=inside, other=0.0)
            sigmoid = tl.sigmoid(weight)
            spatial = mask_scale * sigmoid
            if SEQUENTIAL:
                of_channel += product * spatial[None, :]
                product *= ch[:, None]
            elif channel is not None:
                of_channel += product
            dz = tl.sum(product, 0) * spatial * (1 - sigmoid)
            tl.store(dlogits + place, dz, mask=inside)
            if SOFTMAX:
                dz *= weight
            of_query += dz[None, :] * tile
    part = tl.program_id(0).to(tl.int64) * channels + c
    if channel is not None:
        tl.store(dchannel + part, tl.sum(of_channel, 1), mask=valid)
    if z is not None:
        tl.store(dquery + part, tl.sum(of_query, 1), mask=valid)


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
    channel,
    z,
    dlogits,
    query,
    dmean,
    a,
    dcontext,
    pool_query,
    pool_query_stride,
    context,
    dpool_query,
    mask_scale,
    channels,
    positions,
    splits,
    span,
    SEQUENTIAL: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The gradient of X and, of each span, of the pooling's query."""
    image, start, stop = _span(positions, splits, span)
    c = tl.arange(0, HEIGHT).to(OFFSET)
    valid = c < channels
    row = image * channels + c
    even = tl.load(dmean + row, mask=valid, other=0.0) / positions
    if channel is not None:
        ch = tl.load(channel + row, mask=valid, other=0.0)
    if query is not None:
        q = tl.load(query + row, mask=valid, other=0.0)
    if a is not None:
        dc = tl.load(dcontext + row, mask=valid, other=0.0)
        wq = tl.load(
            pool_query + image * pool_query_stride + c, mask=valid, other=0.0
        )
        centre = tl.load(context + row, mask=valid, other=0.0)[:, None]
    of_query = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for first in range(start, stop, WIDTH):
        p = first + tl.arange(0, WIDTH).to(OFFSET)
        inside = p < stop
        both = valid[:, None] & inside[None, :]
        out = _load(g, gn, gc, gp, image, c, p, both)
        place = image * positions + p
        if query is None:
            out = out * ch[:, None] + even[:, None]
        else:
            logit = tl.load(z + place, mask=inside, other=0.0)
            spatial = (mask_scale * tl.sigmoid(logit))[None, :]
            if channel is None:
                out *= spatial
            elif SEQUENTIAL:
                out *= ch[:, None] * spatial
            else:
                out *= ch[:, None] + spatial
            dz = tl.load(dlogits + place, mask=inside, other=0.0)
            out += dz[None, :] * q[:, None] + even[:, None]
        if a is not None:
            tile = _load(x, xn, xc, xp, image, c, p, both)
            weight = tl.load(a + place, mask=inside, other=0.0)
            da = weight * tl.sum(dc[:, None] * (tile - centre), 0)
            out += weight[None, :] * dc[:, None] + da[None, :] * wq[:, None]
            of_query += da[None, :] * tile
        _store(dx, dxn, dxc, dxp, image, c, p, both, out)
    if a is not None:
        part = tl.program_id(0).to(tl.int64) * channels + c
        tl.store(dpool_query + part, tl.sum(of_query, 1), mask=valid)
