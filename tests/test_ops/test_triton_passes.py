"""Triton's kernels: on a GPU if there is one, else interpreted on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import KINDS, compare, extremes, make_block

from mmpsa import PolarizedSelfAttention
from mmpsa.ops import choose_backend

pytestmark = pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SERVED = [kind for kind in KINDS if kind != ('official', 'sequential')]
HALF = [torch.bfloat16, torch.float16]

if (
    choose_backend(
        make_block('paper', 'parallel', 1, backend='triton').to(DEVICE),
        torch.zeros(1, 1, 1, 1, device=DEVICE),
    )
    != 'triton'
):
    pytest.skip('needs triton and torch 2.4', allow_module_level=True)


def triton_block(variant, layout, channels, **kwargs):
    block = make_block(variant, layout, channels, backend='triton', **kwargs)
    return block.to(DEVICE)


def compare_float32(block, x, g=None):
    compare(block, x, 1e-5, g, torch.float64)


def random(*shape):
    torch.manual_seed(1)
    return torch.randn(shape).to(DEVICE)


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
def test_equals_reference(variant, layout, channels, batch, size):
    block = triton_block(variant, layout, channels)
    compare_float32(block, random(batch, channels, *size))


@pytest.mark.parametrize('variant, layout', SERVED)
def test_many_tiles_in_many_spans(variant, layout):
    block = triton_block(variant, layout, 33)
    compare_float32(block, random(1, 33, 31, 43))


@pytest.mark.parametrize('layout', ['parallel', 'sequential', 'spatial'])
def test_rescaled_equals_reference(layout):
    block = triton_block('paper', layout, 18, identity_init=True)
    compare_float32(block, random(2, 18, 5, 4))


@pytest.mark.parametrize('channels', [2048, 2049])
def test_most_channels(channels):
    torch.manual_seed(0)
    block = PolarizedSelfAttention(channels, backend='triton').to(DEVICE)
    x = random(1, channels, 3, 5)
    served = 'triton' if channels <= 2048 else 'torch'
    assert choose_backend(block, x) == served
    compare_float32(block, x)


@pytest.mark.parametrize('variant, layout', SERVED)
def test_memory_formats(variant, layout):
    block = triton_block(variant, layout, 16)
    wide = random(3, 16, 8, 10)
    last = wide.to(memory_format=torch.channels_last)
    compare_float32(block, wide[:, :, ::2, 1::3])
    compare_float32(block, last)
    for x, g in ((wide, last), (last, wide), (wide, wide[:1, :1, :1, :1])):
        compare_float32(block, x, g.expand_as(x))
    assert block(wide).is_contiguous()
    assert block(last).is_contiguous(memory_format=torch.channels_last)


def test_offsets_beyond_32_bits():
    block = triton_block('paper', 'parallel', 3)
    # Most of it is never touched, so it is not really there.
    huge = torch.empty(2**31 + 8, dtype=torch.float16, device=DEVICE)
    x = huge.as_strided((1, 3, 2, 4), (2**31 + 8, 2**30, 4, 1))
    x.copy_(random(1, 3, 2, 4))
    g = random(1, 3, 2, 4).half()
    for ours, expected in zip(run(block, x, g), run(block, x.clone(), g)):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize('variant, layout', SERVED)
@pytest.mark.parametrize('dtype', HALF)
def test_half_precision_rounds_the_result(variant, layout, dtype):
    """Nothing but what is written is in half precision."""
    block = triton_block(variant, layout, 19)
    x, g = (random(2, 19, 6, 7).to(dtype) for _ in range(2))
    out, dx, *grads = run(block, x, g)
    exact, exact_dx, *exact_grads = run(block, x.float(), g.float())
    ulp = torch.finfo(dtype).eps
    for ours, expected in ((out, exact), (dx, exact_dx)):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), expected, rtol=ulp, atol=1e-5)
    for ours, expected in zip(grads, exact_grads):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('dtype', HALF)
def test_half_precision_weights(dtype):
    block = triton_block('paper', 'sequential', 8).to(dtype)
    x, g = random(2, 8, 6, 5), random(2, 8, 6, 5)
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
def test_extreme_input_stays_finite(variant, layout, dtype, peak):
    block = triton_block(variant, layout, 64)
    for x in extremes(dtype, peak):
        out = block(x.to(DEVICE))
        assert out.dtype == dtype
        assert out.isfinite().all()


@pytest.mark.parametrize('variant, layout', SERVED)
def test_second_derivative(variant, layout):
    block = triton_block(variant, layout, 5)
    results = []
    for block.backend in ('triton', 'torch'):
        x = random(2, 5, 3, 4).requires_grad_()
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
    block = triton_block(variant, layout, 6)
    x, g = random(2, 6, 5, 4), random(2, 6, 5, 4)
    expected = run(block, x, g)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend='aot_eager')
    for ours, value in zip(run(compiled, x, g), expected):
        torch.testing.assert_close(ours, value)


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
