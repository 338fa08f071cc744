"""Every backend against the equations line by line.

Triton's kernels run on a GPU if there is one, else interpreted on the CPU.
"""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import AUTOCAST_DTYPES, KINDS, compare, extremes, make_block
from torch._subclasses import FakeTensorMode

from mmpsa import PolarizedSelfAttention, ops
from mmpsa.ops import (
    BACKENDS,
    LAYOUTS,
    backends,
    polarized_self_attention,
    reference,
)

pytestmark = pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')
GPU = 'cuda' if torch.cuda.is_available() else 'cpu'
VALUE_MAP = ('official', 'sequential')
HALF = [
    ('triton', torch.bfloat16),
    ('triton', torch.float16),
    ('cpp', torch.bfloat16),
    ('torch', torch.bfloat16),
    ('torch', torch.float16),
]
NCHW, LAST = torch.contiguous_format, torch.channels_last
# Shape, dtype, memory format; None has gaps between its elements.
CASES = [
    ((3, 1, 1, 1), torch.float32, NCHW),
    ((2, 1, 7, 5), torch.float32, LAST),
    ((3, 3, 7, 5), torch.float32, NCHW),
    ((2, 17, 1, 1), torch.float32, LAST),
    ((2, 17, 1, 9), torch.float32, NCHW),
    ((2, 18, 8, 10), torch.float32, None),
    ((2, 18, 7, 5), torch.float64, NCHW),
    ((2, 64, 7, 5), torch.float32, LAST),
    ((1, 33, 31, 43), torch.float32, NCHW),  # many tiles for a GPU
    ((1, 33, 31, 43), torch.float32, LAST),
    ((1, 130, 13, 21), torch.float32, NCHW),  # more than a block of a matrix
    ((0, 16, 4, 4), torch.float32, NCHW),
]


@pytest.fixture
def threads(request):
    """So many threads for the kernels of the CPU, for one test."""
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


COLLAPSED = [name for name in BACKENDS if name != 'reference']


@pytest.fixture(params=[*BACKENDS, 'cpp, 2 threads'])
def backend(request):
    yield from use(request.param)


@pytest.fixture(params=[*COLLAPSED, 'cpp, 2 threads'])
def collapsed(request):
    """Those that can be compared with the equations: not the equations."""
    yield from use(request.param)


def use(backend):
    name, _, threads = backend.partition(', ')
    if backends()[name] is not None:
        pytest.skip(f'{name}: {backends()[name]}')
    torch.set_num_threads(2 if threads else 1)
    yield name
    torch.set_num_threads(1)


def expected_backend(backend, kind, x):
    """The one that must have computed it."""
    served = {backend: [torch.float32]}
    for name, dtype in HALF:
        served.setdefault(name, []).append(dtype)
    if kind == VALUE_MAP or x.numel() == 0 or x.dtype not in served[backend]:
        return 'torch'
    return backend


def make(backend, variant, layout, channels, **kwargs):
    """A random block and its device."""
    device = GPU if backend == 'triton' else 'cpu'
    block = make_block(variant, layout, channels, backend=backend, **kwargs)
    return block.to(device), device


def random(device, *shape):
    torch.manual_seed(1)
    return torch.randn(shape).to(device)


def laid_out(shape, dtype, memory_format, device):
    if memory_format is None:
        n, c, h, w = shape
        return random(device, n, c, 2 * h, 3 * w).to(dtype)[..., ::2, 1::3]
    return random(device, *shape).to(dtype).to(memory_format=memory_format)


def tolerance_of(block, dtype):
    # Of one channel, the backward of LayerNorm takes the difference of two
    # equal numbers times 1 / sqrt(eps), in torch as in the equations.
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    return tolerance if block.in_channels > 1 else tolerance / 1e-5**0.5


def run(block, x, g):
    """Output and gradients of x and the weights."""
    x = x.detach().requires_grad_()
    out = block(x)
    inputs = [x, *block.parameters()]
    return [out, *torch.autograd.grad(out, inputs, g)]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape, dtype, memory_format', CASES)
def test_equals_reference(collapsed, kind, shape, dtype, memory_format):
    if kind == VALUE_MAP and shape[1] < 8:
        with pytest.raises(ValueError, match='in_channels must be at least 8'):
            make(collapsed, *kind, shape[1])
        return
    block, device = make(collapsed, *kind, shape[1])
    block = block.to(dtype)
    x = laid_out(shape, dtype, memory_format, device)
    assert block.served_by(x) == expected_backend(collapsed, kind, x)
    compare(block, x, tolerance_of(block, dtype), None, torch.float64)
    if x.numel() == 0:
        block(x).sum().backward()
        assert not any(p.grad.any() for p in block.parameters())
    elif memory_format is not None:
        assert block(x).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('layout', ['sequential', 'channel', 'spatial'])
def test_mask_scale_is_read_at_each_call(backend, layout):
    """Others write its data: averaged models, distributed training."""
    block, device = make(backend, 'paper', layout, 18)
    x = random(device, 2, 18, 5, 4)
    compare(block, x, 1e-5, None, torch.float64)
    before = block(x)
    block.mask_scale.data.mul_(2)
    compare(block, x, 1e-5, None, torch.float64)
    assert not torch.allclose(block(x), before)


@pytest.mark.parametrize('layout', ['sequential', 'channel', 'spatial'])
def test_mask_scale_may_be_written_before_the_backward(backend, layout):
    """Distributed training broadcasts it at each forward."""
    block, device = make(backend, 'paper', layout, 8)
    x = random(device, 2, 8, 5, 4)
    expected = run(block, x, x)
    out = block(x.requires_grad_())
    with torch.no_grad():
        block.mask_scale.fill_(0.5)
    inputs = [x, *block.parameters()]
    grads = torch.autograd.grad(out, inputs, x.detach())
    for ours, grad in zip(grads, expected[1:]):
        torch.testing.assert_close(ours, grad)


@pytest.mark.parametrize('layout', ['sequential', 'channel', 'spatial'])
def test_mask_scale_has_no_gradient(backend, layout):
    """And nobody who asks for one goes without it in silence."""
    block, device = make(backend, 'paper', layout, 8)
    x = random(device, 1, 8, 5, 4)
    block.mask_scale.requires_grad_()
    for call in (block, block.masks):
        with pytest.raises(RuntimeError, match='mask_scale must not require'):
            call(x)


@pytest.mark.parametrize('variant, layout', KINDS)
def test_nothing_is_read_on_the_host(backend, variant, layout):
    """Fake tensors have no values to read."""
    with FakeTensorMode():
        block = make_block(variant, layout, 8, backend=backend)
        x = torch.randn(2, 8, 5, 4).requires_grad_()
        out = block(x)
        out.sum().backward()
        shapes = [mask.shape for mask in block.masks(x) if mask is not None]
    assert out.shape == x.grad.shape == (2, 8, 5, 4)
    assert shapes


@pytest.mark.parametrize('variant, layout', KINDS)
@pytest.mark.parametrize('memory_format', [NCHW, LAST])
@pytest.mark.parametrize(
    'images, threads', [(1, 1), (3, 2), (3, 5)], indirect=['threads']
)
def test_many_tiles_in_many_spans(
    variant, layout, memory_format, threads, images
):
    """Of the CPU's kernels, whose tiles are large."""
    if backends()['cpp'] is not None:
        pytest.skip(backends()['cpp'])
    block, _ = make('cpp', variant, layout, 96)
    for parameter in block.parameters():
        parameter.data.mul_(0.3)
    x = random('cpu', images, 96, 61, 53).to(memory_format=memory_format)
    compare(block, x, 1e-5, None, torch.float64)


@pytest.mark.parametrize('variant, layout', KINDS)
@pytest.mark.parametrize('memory_format', [NCHW, LAST])
@pytest.mark.parametrize('threads', [1, 3], indirect=True)
def test_larger_than_caches(variant, layout, memory_format, threads):
    """The CPU's kernels write past the caches, from any address."""
    if backends()['cpp'] is not None:
        pytest.skip(backends()['cpp'])
    block, _ = make('cpp', variant, layout, 17)
    x = random('cpu', 1, 17, 351, 353).to(memory_format=memory_format)
    assert x.nbytes > 8 * 2**20
    compare(block, x, 1e-5, None, torch.float64)


@pytest.mark.parametrize('memory_format', [NCHW, LAST])
@pytest.mark.parametrize('threads', [1, 3], indirect=True)
def test_larger_than_caches_in_half_precision(memory_format, threads):
    if backends()['cpp'] is not None:
        pytest.skip(backends()['cpp'])
    block, _ = make('cpp', 'paper', 'parallel', 17)
    x = random('cpu', 1, 17, 499, 503).bfloat16()
    x = x.to(memory_format=memory_format)
    assert x.nbytes > 8 * 2**20
    ulp = torch.finfo(torch.bfloat16).eps
    out, dx, *_ = run(block, x, x)
    exact, exact_dx, *_ = run(block, x.float(), x.float())
    for ours, expected in ((out, exact), (dx, exact_dx)):
        torch.testing.assert_close(ours.float(), expected, rtol=ulp, atol=1e-5)


@pytest.mark.parametrize('threads', [1, 2], indirect=True)
def test_calls_at_once(threads):
    """From several threads of Python, as DataParallel does."""
    if backends()['cpp'] is not None:
        pytest.skip(backends()['cpp'])
    block, _ = make('cpp', 'paper', 'sequential', 32)
    inputs = [random('cpu', 2, 32, 40, 30) + i for i in range(4)]
    expected = [run(block, x, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: run(block, x, x), 2 * inputs))
    for ours, exact in zip(results, 2 * expected):
        torch.testing.assert_close(ours, exact)


@pytest.mark.slow
@pytest.mark.parametrize('channels', [2048, 2049])
def test_most_channels(channels):
    if backends()['triton'] is not None:
        pytest.skip(backends()['triton'])
    torch.manual_seed(0)
    # wide sums: make_block's weights would saturate every mask
    init_cfg = dict(type='Kaiming', layer='Conv2d', mode='fan_in')
    block = PolarizedSelfAttention(
        channels, backend='triton', init_cfg=init_cfg
    )
    block.init_weights()
    block.to(GPU)
    x = random(GPU, 1, channels, 3, 5)
    assert (block.served_by(x) == 'triton') == (channels <= 2048)
    compare(block, x, 1e-5, None, torch.float64)


@pytest.mark.parametrize(
    'variant, layout', [kind for kind in KINDS if kind != VALUE_MAP]
)
@pytest.mark.parametrize('memory_format', [NCHW, LAST])
def test_many_pieces(variant, layout, memory_format, monkeypatch):
    """Of Triton's kernels, as of larger inputs: all loops run several times.

    And as of many channels: each step of the vectors has its own launch.
    """
    if backends()['triton'] is not None:
        pytest.skip(backends()['triton'])
    from mmpsa.ops import triton_kernels

    for name, value in dict(
        _TILE=32, _WARP_TILE=8, _SPAN_BYTES=512, _LEAST_WIDTH=4, _MATRIX=64,
        _SUMS=32, _BLOCK=16, _ALONE_FEW=0, _BLOCKS=2, _GROUPS=2,
    ).items():  # fmt: skip
        monkeypatch.setattr(triton_kernels, name, value)
    block, device = make('triton', variant, layout, 18)
    x = random(device, 3, 18, 3, 4).to(memory_format=memory_format)
    compare(block, x, 1e-5, None, torch.float64)


@pytest.mark.parametrize('variant, layout', KINDS)
def test_gradients_of_other_formats(collapsed, variant, layout):
    # Of 16, a LayerNorm of the authors has two numbers, too near each other.
    block, device = make(collapsed, variant, layout, 32)
    wide = random(device, 3, 32, 8, 10)
    last = wide.to(memory_format=LAST)
    for x, g in ((wide, last), (last, wide), (wide, wide[:1, :1, :1, :1])):
        compare(block, x, 1e-5, g.expand_as(x), torch.float64)


@pytest.mark.parametrize('variant, layout', KINDS)
def test_gradients_are_slopes(backend, variant, layout):
    """Of the equations in float64, along random lines, without autograd."""
    block, device = make(backend, variant, layout, 34)
    x, g = (random(device, 2, 34, 6, 7) for _ in range(2))
    _, *grads = run(block, x, g)
    exact, x = copy.deepcopy(block).double(), x.double()
    names = ['x', *dict(block.named_parameters())]
    tensors = [x, *(parameter.data for parameter in exact.parameters())]

    def value(tensor, step):
        tensor += step
        with torch.no_grad():
            y = reference.polarized_self_attention(
                x, exact.weights, exact.spec
            )
        tensor -= step
        return (y * g).sum()

    for name, tensor, grad in zip(names, tensors, grads):
        peak = grad.abs().max().item()
        for _ in range(3):
            line = torch.randn_like(tensor)
            step = 1e-5 * line
            slope = (value(tensor, step) - value(tensor, -step)) / 2e-5
            torch.testing.assert_close(
                (grad * line).sum(),
                slope,
                rtol=0,
                atol=1e-5 * max(1.0, peak) * line.norm().item(),
                msg=lambda text, name=name: f'{name}: {text}',
            )


@pytest.mark.parametrize('variant, layout', KINDS)
@pytest.mark.parametrize('backend, dtype', HALF)
def test_half_precision_rounds_the_result(variant, layout, backend, dtype):
    """Nothing but what is written is in half precision."""
    if backends()[backend] is not None:
        pytest.skip(backends()[backend])
    block, device = make(backend, variant, layout, 19)
    x, g = (random(device, 2, 19, 6, 7).to(dtype) for _ in range(2))
    expected = expected_backend(backend, (variant, layout), x)
    assert block.served_by(x) == expected
    out, dx, *grads = run(block, x, g)
    exact, exact_dx, *exact_grads = run(block, x.float(), g.float())
    ulp = torch.finfo(dtype).eps
    for ours, expected in ((out, exact), (dx, exact_dx)):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, rtol=ulp, atol=1e-5)
    for ours, expected in zip(grads, exact_grads):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('variant, layout', KINDS)
@pytest.mark.parametrize('backend, dtype', HALF)
def test_half_precision_weights(variant, layout, backend, dtype):
    """Read as they are. Their gradients are rounded, and nothing else."""
    if backends()[backend] is not None:
        pytest.skip(backends()[backend])
    block, device = make(backend, variant, layout, 34)
    block = block.to(dtype)
    x, g = (random(device, 2, 34, 6, 7) for _ in range(2))
    assert block.served_by(x) == expected_backend(
        backend, (variant, layout), x
    )
    out, dx, *grads = run(block, x, g)
    exact = copy.deepcopy(block).double()
    exact.backend = 'reference'
    exact_out, exact_dx, *exact_grads = run(exact, x.double(), g.double())
    for ours, expected in ((out, exact_out), (dx, exact_dx)):
        assert ours.dtype == torch.float32
        bound = 1e-5 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=bound)
    for ours, expected in zip(grads, exact_grads):
        assert ours.dtype == dtype
        bound = 1e-5 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(
            ours.double(), expected, rtol=torch.finfo(dtype).eps, atol=bound
        )


def starts(variant, layout, backend):
    """Blocks as drawn, as a training starts, and with saturated masks."""
    for seed, factor in ((0, 1), (1, 1), (2, 0.1), (3, 4)):
        block = make_block(variant, layout, 64, seed=seed, backend=backend)
        for parameter in block.parameters():
            parameter.data *= factor
        yield block
    for identity_init in (False, True)[: 1 + (variant == 'paper')]:
        torch.manual_seed(0)
        yield PolarizedSelfAttention(
            64, layout, variant, identity_init, backend
        )


@pytest.mark.parametrize('variant, layout', KINDS)
@pytest.mark.parametrize(
    'dtype, peak',
    [(torch.float16, 16000), (torch.float32, 1e12), (torch.bfloat16, 1e12)],
)
def test_extreme_input_stays_finite(backend, variant, layout, dtype, peak):
    if backend == 'reference':
        pytest.skip('the equations as they are written overflow')
    device = GPU if backend == 'triton' else 'cpu'
    inputs = [x.to(device) for x in extremes(dtype, peak)]
    cases = itertools.product(
        starts(variant, layout, backend), (torch.float32, dtype), inputs
    )
    if backend == 'triton' and device == 'cpu':
        # The interpreter is slow. This takes each start, dtype and input.
        cases = itertools.islice(cases, None, None, 9)
    for block, weights, x in cases:
        block = block.to(device, weights)
        out = block(x)
        assert out.dtype == dtype
        assert out.isfinite().all()
        assert all(
            mask.isfinite().all()
            for mask in block.masks(x)
            if mask is not None
        )


def test_a_low_peak_of_the_focus(backend):
    """No lane beyond the last position counts: 20 is no power of two."""
    block, device = make(backend, 'official', 'parallel', 8)
    with torch.no_grad():
        block.conv_q_left.weight.fill_(1.0)
        block.conv_v_left.weight.fill_(-1.0)
    x = 30 + random(device, 1, 8, 5, 4)
    for tensor in run(block, x, torch.ones_like(x)):
        assert tensor.isfinite().all()


# More positions than a tile of the CPU's kernels has, and few.
@pytest.mark.parametrize('size', [(5, 4), (40, 41)])
@pytest.mark.parametrize('variant, layout', KINDS)
@pytest.mark.parametrize('value', [float('inf'), float('-inf'), float('nan')])
def test_non_finite_input_passes_through(
    backend, variant, layout, value, size
):
    """To all that depends on it, and nothing else."""
    block, device = make(backend, variant, layout, 8)
    x = random(device, 2, 8, *size)
    g = torch.ones_like(x)
    clean, clean_dx, *_ = run(block, x, g)
    x[0, 3, 2, 1] = value
    out, dx, *grads = run(block, x, g)
    for ours, expected in ((out, clean), (dx, clean_dx)):
        assert not ours[0].isfinite().any()
        assert torch.equal(ours[1], expected[1])
    names = dict(block.named_parameters())
    for name, grad in zip(names, grads):
        if name != 'ch_wq.bias':  # it is zero, whatever comes
            assert not grad.isfinite().any(), name


@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.complex64])
def test_refused_dtype(backend, dtype):
    block, device = make(backend, 'paper', 'parallel', 8)
    x = torch.zeros(2, 8, 3, 3, dtype=dtype, device=device)
    for call in (block, block.masks):
        with pytest.raises(ValueError, match=f'floating-point.*got {dtype}'):
            call(x)


@pytest.mark.parametrize('shape', [(2, 8, 4), (2, 7, 4, 4), (8, 4, 4)])
def test_refused_shape(backend, shape):
    block, device = make(backend, 'paper', 'parallel', 8)
    x = torch.zeros(shape, device=device)
    for call in (
        lambda: block(x),
        lambda: block.masks(x),
        lambda: block.served_by(x),
        lambda: polarized_self_attention(x, block.weights, block.spec),
    ):
        with pytest.raises(ValueError, match='x must be N×8×H×W, got'):
            call()


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(variant='papr'), "variant must be one of .* got 'papr'"),
        (dict(layout='both'), "layout must be one of .* got 'both'"),
        (dict(variant='official'), "layout must .* got 'channel'"),
    ],
)
def test_refused_spec(change, message):
    block = make_block('paper', 'channel', 8)
    spec = block.spec._replace(**change)
    for function in (ops.polarized_self_attention, ops.masks):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(1, 8, 2, 2), block.weights, spec)


def test_weights_that_lie_otherwise(collapsed):
    block, device = make(collapsed, 'paper', 'parallel', 18)
    for name in ('ch_wv', 'ch_wz', 'sp_wq', 'sp_wv'):
        parameter = block.get_parameter(f'{name}.weight')
        turned = parameter.data.transpose(0, 1).contiguous()
        parameter.data = turned.transpose(0, 1)
        assert not parameter.is_contiguous()
    compare(block, random(device, 2, 18, 5, 4), 1e-5, None, torch.float64)


@pytest.mark.parametrize('variant, layout', KINDS)
def test_no_positions(backend, variant, layout):
    if backend == 'reference':
        pytest.skip("torch's convolutions refuse maps without positions")
    block, device = make(backend, variant, layout, 8)
    assert block(random(device, 2, 8, 0, 4)).shape == (2, 8, 0, 4)


@pytest.mark.parametrize('variant, layout', KINDS)
def test_shapes_on_meta(variant, layout):
    block = make_block(variant, layout, 8).to('meta')
    x = torch.zeros(2, 8, 3, 4, device='meta')
    assert block(x).shape == x.shape
    assert all(m.is_meta for m in block.masks(x) if m is not None)


@pytest.mark.parametrize('layout', LAYOUTS['paper'])
def test_refused_device(backend, layout):
    block, _ = make(backend, 'paper', layout, 8)
    x = torch.zeros(2, 8, 3, 3, device='meta')
    for call in (block, block.masks):
        with pytest.raises(ValueError, match='device of the weights.*got met'):
            call(x)


@pytest.mark.parametrize('layout', LAYOUTS['paper'])
@pytest.mark.parametrize('factor', [1e6, 1e12])
def test_large_input_keeps_the_masks(layout, factor):
    """LayerNorm is the same function at any scale, float32 or not."""
    block = make_block('paper', layout, 32)
    x = torch.randn(2, 32, 6, 6).double() * factor
    expected = block.double().masks(x)
    masks = block.float().masks(x.float())
    for ours, mask in zip(masks, expected):
        if mask is not None:
            torch.testing.assert_close(ours.double(), mask, rtol=0, atol=2e-3)


@pytest.mark.parametrize('variant, layout', KINDS)
@pytest.mark.parametrize('dtype', AUTOCAST_DTYPES)
def test_autocast_computes_in_float32(backend, variant, layout, dtype):
    if backend == 'reference':
        pytest.skip('it hands half precision on')
    block, device = make(backend, variant, layout, 32)
    for x in (
        random(device, 2, 32, 8, 9),
        random(device, 2, 32, 8, 8).to(dtype),
    ):
        expected = block(x.float()).to(x.dtype)
        with torch.autocast(device, dtype=dtype):
            out = block(x)
            masks = block.masks(x)
        assert out.dtype == x.dtype
        # Rounding the result is the only difference. A GPU rounds to the
        # nearest, Triton's interpreter towards zero.
        served_by = block.served_by(x)
        rounds = served_by != 'triton' or device == 'cuda'
        if rounds and served_by == block.served_by(x.float()):
            assert torch.equal(out, expected)
        torch.testing.assert_close(
            out, expected, rtol=torch.finfo(x.dtype).eps, atol=1e-5
        )
        assert all(m.dtype == torch.float32 for m in masks if m is not None)


@pytest.mark.parametrize('variant, layout', KINDS)
def test_second_derivative(collapsed, variant, layout):
    """Against that of the equations in float64."""
    block, device = make(collapsed, variant, layout, 9)
    x = random(device, 2, 9, 3, 4)
    results = []
    for module, x in (
        (block, x),
        (make_block(variant, layout, 9, backend='reference').double(), x),
    ):
        parameters = dict(module.named_parameters())
        x = x.to(next(module.parameters())).requires_grad_()
        inputs = [x, *parameters.values()]
        grads = torch.autograd.grad(
            module(x).pow(2).sum(), inputs, create_graph=True
        )
        penalty = sum(grad.pow(2).sum() for grad in grads)
        results.append(
            dict(zip(('x', *parameters), torch.autograd.grad(penalty, inputs)))
        )
    ours, exact = results
    for name, expected in exact.items():
        # The attention's bias has the gradient 0: a sum of the terms that
        # make up the gradient of the weight.
        like = exact[name.replace('ch_wq.bias', 'ch_wq.weight')]
        bound = 1e-4 * max(like.abs().max().item(), 1.0)
        torch.testing.assert_close(
            ours[name].to(expected), expected, rtol=0, atol=bound, msg=name
        )
