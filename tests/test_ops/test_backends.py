"""Which backend computes a block, and what all of them promise."""

from functools import partial

import pytest
import torch
from helpers import AUTOCAST_DTYPES, KINDS, make_block
from mmengine.utils import digit_version
from torch.autograd import forward_ad, gradgradcheck
from torch.func import functional_call, jvp, vmap
from torch.utils.checkpoint import checkpoint

from mmpsa import PSA
from mmpsa.ops import (
    BACKENDS,
    backends,
    choose_backend,
    cpp_passes,
    operator,
    reference,
)

VALUE_MAP = ('official', 'sequential')
COLLAPSED = [kind for kind in KINDS if kind != VALUE_MAP]


def images(channels=8, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(2, channels, 6, 5, dtype=dtype)


def gradients(block, x, forward=None):
    x = x.detach().requires_grad_()
    out = (block if forward is None else forward)(x)
    return torch.autograd.grad(out.pow(2).sum(), [x, *block.parameters()])


@pytest.mark.parametrize('variable', [None, '', 'reference', 'nonsense'])
@pytest.mark.parametrize('backend', BACKENDS)
def test_argument_comes_before_variable(backend, variable, monkeypatch):
    if variable is not None:
        monkeypatch.setenv('MMPSA_BACKEND', variable)
    assert PSA(4, backend=backend).backend == backend


def test_variable_counts_when_the_block_is_built(monkeypatch):
    monkeypatch.setenv('MMPSA_BACKEND', 'reference')
    block = PSA(4)
    monkeypatch.delenv('MMPSA_BACKEND')
    assert choose_backend(block, images(4)) == 'reference'
    assert PSA(4).backend is None


def test_unknown_backend_is_refused(monkeypatch):
    names = r"'reference', 'triton', 'cpp', 'torch'"
    allowed = rf"must be one of \({names}\), got 'cuda'"
    with pytest.raises(ValueError, match=f'^backend {allowed}'):
        PSA(4, backend='cuda')
    monkeypatch.setenv('MMPSA_BACKEND', 'cuda')
    with pytest.raises(ValueError, match=f'^MMPSA_BACKEND {allowed}'):
        PSA(4)


@pytest.mark.parametrize('variant, layout', KINDS)
def test_default_on_the_cpu(variant, layout):
    block = make_block(variant, layout, 8)
    collapses = (variant, layout) != VALUE_MAP
    served = 'cpp' if collapses and cpp_passes.is_built() else 'torch'
    assert choose_backend(block, images()) == served
    assert choose_backend(block, images(dtype=torch.float16)) == 'torch'


def test_reference_runs_the_equations(monkeypatch):
    block = make_block('paper', 'parallel', 8, backend='reference')
    expected = reference.paper(block, images())
    monkeypatch.setattr(operator, 'fused', None)
    assert torch.equal(block(images()), expected)


@pytest.mark.parametrize(
    'dtype, weights',
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
    ],
)
def test_reference_hands_mixed_and_half_precision_on(dtype, weights):
    block = make_block('paper', 'parallel', 8, backend='reference').to(weights)
    x = images(dtype=dtype)
    served = choose_backend(block, x)
    assert served != 'reference'
    expected = block(x)
    block.backend = served
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize(
    'kind, x',
    [
        (('paper', 'parallel'), images(dtype=torch.float64)),
        (('paper', 'parallel'), images()[:0]),
        (('paper', 'parallel'), images(2049)),
        (VALUE_MAP, images()),
    ],
)
def test_triton_hands_on_what_it_cannot_serve(kind, x):
    block = make_block(*kind, x.shape[1], backend='triton')
    assert choose_backend(block, x) in ('cpp', 'torch')
    assert block(x).shape == x.shape


def test_without_triton_and_extension_torch_serves(monkeypatch):
    monkeypatch.setattr(operator, '_HAS_TRITON', False)
    monkeypatch.setattr(cpp_passes, 'is_built', lambda: False)
    block = make_block('paper', 'parallel', 8, backend='triton')
    assert choose_backend(block, images()) == 'torch'
    assert block(images()).isfinite().all()


def test_log_says_once_which_ran(monkeypatch):
    lines = []
    monkeypatch.setattr(
        operator, 'print_log', lambda line, **kwargs: lines.append(line)
    )
    operator._log.cache_clear()
    for backend in ('torch', 'reference'):
        block = make_block('paper', 'parallel', 8, backend=backend)
        for x in (images(), images(), images()[:1]):
            block(x)
    assert lines == [
        f'PSA, paper parallel, on ({batch}, 8, 6, 5), torch.float32, cpu: '
        f'{backend} backend'
        for backend in ('torch', 'reference')
        for batch in (2, 1)
    ]


@pytest.mark.parametrize('variant, layout', COLLAPSED)
@pytest.mark.parametrize('backend', ['torch', 'cpp', 'triton'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')
def test_saved_for_backward(variant, layout, backend, dtype):
    """X itself, and a few numbers for each channel and position."""
    block = make_block(variant, layout, 64, backend=backend)
    x = torch.randn(2, 64, 24, 24).to(dtype).requires_grad_()
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        block(x)
    assert saved.pop(x.data_ptr()) == x.numel() * x.element_size()
    for parameter in block.parameters():
        saved.pop(parameter.data_ptr(), None)
    assert sum(saved.values()) <= 4 * 2 * (12 * 64 + 2 * 24 * 24)


@pytest.mark.parametrize('variant, layout', COLLAPSED)
def test_second_derivative(variant, layout):
    block = make_block(variant, layout, 3).double()
    names, weights = zip(*block.named_parameters())

    def forward(x, *weights):
        return functional_call(block, dict(zip(names, weights)), (x,))

    x = torch.randn(1, 3, 2, 2, dtype=torch.double, requires_grad=True)
    assert gradgradcheck(forward, (x, *weights))


@pytest.mark.parametrize('variant, layout', KINDS)
def test_transforms(variant, layout):
    """They see plain torch operations."""
    block, x = make_block(variant, layout, 8), images()
    expected = block(x)
    torch.testing.assert_close(vmap(block)(x[:, None])[:, 0], expected)
    primal, tangent = jvp(block, (x,), (x,))
    torch.testing.assert_close(primal, expected)
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(block(forward_ad.make_dual(x, x)))
    torch.testing.assert_close(out.tangent, tangent)
    (transposed,) = torch.autograd.grad(
        block(x.requires_grad_()), x, torch.ones_like(x)
    )
    torch.testing.assert_close((transposed * x).sum(), tangent.sum())
    traced = torch.jit.trace(block, (x,))
    assert 'PythonOp' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x[:1]), block(x[:1]))


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.4.0'),
    reason='torch 2.1 cannot compile promote_types',
)
@pytest.mark.parametrize('variant, layout', KINDS)
def test_compile(variant, layout):
    block = make_block(variant, layout, 8)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend='aot_eager')
    for ours, expected in zip(
        gradients(block, images(), compiled), gradients(block, images())
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', AUTOCAST_DTYPES)
def test_backward_under_autocast(dtype):
    block, x = make_block('paper', 'parallel', 8), images()
    expected = gradients(block, x)
    with torch.autocast('cpu', dtype=dtype):
        grads = gradients(block, x)
    for ours, grad in zip(grads, expected):
        assert torch.equal(ours, grad)


def test_checkpoint():
    block, x = make_block('paper', 'sequential', 8), images()
    forward = partial(checkpoint, block, use_reentrant=False)
    again = gradients(block, x, forward)
    for ours, expected in zip(again, gradients(block, x)):
        assert torch.equal(ours, expected)


def test_frozen_weights_or_input():
    block, x = make_block('official', 'parallel', 8), images()
    expected = gradients(block, x)
    block.requires_grad_(False)
    x = x.requires_grad_()
    (dx,) = torch.autograd.grad(block(x).pow(2).sum(), x)
    assert torch.equal(dx, expected[0])
    block.conv_up.requires_grad_(True)
    block(x.detach()).pow(2).sum().backward()
    names = [name for name, _ in block.named_parameters()]
    place = 1 + names.index('conv_up.weight')
    assert torch.equal(block.conv_up.weight.grad, expected[place])
    assert block.conv_q_left.weight.grad is None
    with torch.no_grad():
        assert block(x).grad_fn is None


def test_says_why_a_backend_is_not_there(monkeypatch):
    assert tuple(backends()) == BACKENDS
    monkeypatch.setattr(cpp_passes, 'is_built', lambda: False)
    monkeypatch.setattr(operator, '_HAS_TRITON', False)
    reasons = backends()
    assert reasons['reference'] is reasons['torch'] is None
    assert 'was not built' in reasons['cpp']
    assert 'Triton' in reasons['triton']
