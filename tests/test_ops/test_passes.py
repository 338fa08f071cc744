"""The passes of the backends that have their own, in a block.

Triton's kernels run on a GPU if there is one, else interpreted on the CPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import KINDS, compare, extremes, make_block
from mmengine.utils import digit_version

from mmpsa import PolarizedSelfAttention
from mmpsa.ops import choose_backend

pytestmark = pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')
GPU = 'cuda' if torch.cuda.is_available() else 'cpu'
DEVICES = {'triton': GPU, 'cpp': 'cpu'}
SERVED = [kind for kind in KINDS if kind != ('official', 'sequential')]
HALF = [
    ('triton', torch.bfloat16),
    ('triton', torch.float16),
    ('cpp', torch.bfloat16),
]


def block_by(backend, variant, layout, channels, **kwargs):
    """A random block that a backend serves, where it is there."""
    block = make_block(variant, layout, channels, backend=backend, **kwargs)
    block = block.to(DEVICES[backend])
    x = torch.zeros(1, channels, 1, 1, device=DEVICES[backend])
    if choose_backend(block, x) != backend:
        pytest.skip(f'the backend {backend} is not there')
    return block


@pytest.fixture(params=DEVICES)
def backend(request):
    return request.param


def compare_float32(block, x, g=None):
    # Of one channel, the backward of LayerNorm takes the difference of two
    # equal numbers times 1 / sqrt(eps), in torch as in the equations.
    tolerance = 1e-5 if block.in_channels > 1 else 1e-5 / 1e-5**0.5
    compare(block, x, tolerance, g, torch.float64)


def random(block, *shape):
    torch.manual_seed(1)
    return torch.randn(shape).to(next(block.parameters()).device)


def run(block, x, g):
    """Output and gradients of x and the weights."""
    x = x.detach().requires_grad_()
    assert choose_backend(block, x) == block.backend
    out = block(x)
    inputs = [x, *block.parameters()]
    return [out, *torch.autograd.grad(out, inputs, g)]


@pytest.mark.parametrize('variant, layout', SERVED)
@pytest.mark.parametrize('channels', [1, 3, 17, 48, 130])
@pytest.mark.parametrize(
    'batch, size', [(3, (1, 1)), (3, (7, 5)), (1, (13, 21))]
)
def test_equals_reference(backend, variant, layout, channels, batch, size):
    block = block_by(backend, variant, layout, channels)
    compare_float32(block, random(block, batch, channels, *size))


@pytest.mark.parametrize('variant, layout', SERVED)
def test_many_tiles_in_many_spans(backend, variant, layout):
    block = block_by(backend, variant, layout, 33)
    compare_float32(block, random(block, 1, 33, 31, 43))


@pytest.mark.parametrize('layout', ['parallel', 'sequential', 'spatial'])
def test_rescaled_equals_reference(backend, layout):
    block = block_by(backend, 'paper', layout, 18, identity_init=True)
    compare_float32(block, random(block, 2, 18, 5, 4))


@pytest.mark.parametrize('channels', [2048, 2049])
def test_most_channels(channels):
    block_by('triton', 'paper', 'parallel', 1)  # or skip
    torch.manual_seed(0)
    block = PolarizedSelfAttention(channels, backend='triton').to(GPU)
    x = random(block, 1, channels, 3, 5)
    assert (choose_backend(block, x) == 'triton') == (channels <= 2048)
    compare_float32(block, x)


@pytest.mark.parametrize('variant, layout', SERVED)
def test_memory_formats(backend, variant, layout):
    block = block_by(backend, variant, layout, 16)
    wide = random(block, 3, 16, 8, 10)
    last = wide.to(memory_format=torch.channels_last)
    compare_float32(block, wide[:, :, ::2, 1::3])
    compare_float32(block, last)
    for x, g in ((wide, last), (last, wide), (wide, wide[:1, :1, :1, :1])):
        compare_float32(block, x, g.expand_as(x))
    assert block(wide).is_contiguous()
    assert block(last).is_contiguous(memory_format=torch.channels_last)


def test_offsets_beyond_32_bits():
    block = block_by('triton', 'paper', 'parallel', 3)
    # Most of it is never touched, so it is not really there.
    huge = torch.empty(2**31 + 8, dtype=torch.float16, device=GPU)
    x = huge.as_strided((1, 3, 2, 4), (2**31 + 8, 2**30, 4, 1))
    x.copy_(random(block, 1, 3, 2, 4))
    g = random(block, 1, 3, 2, 4).half()
    for ours, expected in zip(run(block, x, g), run(block, x.clone(), g)):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize('variant, layout', SERVED)
@pytest.mark.parametrize('backend, dtype', HALF)
def test_half_precision_rounds_the_result(variant, layout, backend, dtype):
    """Nothing but what is written is in half precision."""
    block = block_by(backend, variant, layout, 19)
    x, g = (random(block, 2, 19, 6, 7).to(dtype) for _ in range(2))
    out, dx, *grads = run(block, x, g)
    exact, exact_dx, *exact_grads = run(block, x.float(), g.float())
    ulp = torch.finfo(dtype).eps
    for ours, expected in ((out, exact), (dx, exact_dx)):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, rtol=ulp, atol=1e-5)
    for ours, expected in zip(grads, exact_grads):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('backend, dtype', HALF)
def test_half_precision_weights(backend, dtype):
    block = block_by(backend, 'paper', 'sequential', 8).to(dtype)
    x, g = random(block, 2, 8, 6, 5), random(block, 2, 8, 6, 5)
    grads = run(block, x, g)
    block.backend = 'torch'
    for ours, expected in zip(grads, run(block, x, g)):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    'variant, layout',
    [('paper', 'parallel'), ('paper', 'sequential'), ('official', 'parallel')],
)
@pytest.mark.parametrize(
    'dtype, peak',
    [(torch.float16, 16000), (torch.float32, 1e18), (torch.bfloat16, 1e18)],
)
def test_extreme_input_stays_finite(backend, variant, layout, dtype, peak):
    block = block_by(backend, variant, layout, 64)
    for x in extremes(dtype, peak):
        out = block(x.to(DEVICES[backend]))
        assert out.dtype == dtype
        assert out.isfinite().all()


@pytest.mark.parametrize('variant, layout', SERVED)
def test_second_derivative(backend, variant, layout):
    block = block_by(backend, variant, layout, 5)
    results = []
    for block.backend in (backend, 'torch'):
        x = random(block, 2, 5, 3, 4).requires_grad_()
        inputs = [x, *block.parameters()]
        grads = torch.autograd.grad(
            block(x).pow(2).sum(), inputs, create_graph=True
        )
        penalty = sum(grad.pow(2).sum() for grad in grads)
        results.append(torch.autograd.grad(penalty, inputs))
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'variant, layout', [('paper', 'sequential'), ('official', 'parallel')]
)
def test_compile(variant, layout):
    block = block_by('triton', variant, layout, 6)
    x, g = random(block, 2, 6, 5, 4), random(block, 2, 6, 5, 4)
    expected = run(block, x, g)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend='aot_eager')
    for ours, value in zip(run(compiled, x, g), expected):
        torch.testing.assert_close(ours, value)


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.4.0'),
    reason='the kernels serve from torch 2.4 on',
)
def test_kernels_compile_for_gpus(tmp_path):
    """The interpreter forgives what the compiler does not."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name('compile_kernels.py')],
        capture_output=True,
        text=True,
        env=dict(
            os.environ, TRITON_INTERPRET='0', TRITON_CACHE_DIR=str(tmp_path)
        ),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 20
