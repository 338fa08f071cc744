"""Which backend computes a block, and what all of them promise."""

import logging
import re
import subprocess
from functools import partial

import pytest
import torch
import triton_operators
from helpers import AUTOCAST_DTYPES, KINDS, make_block
from torch._dynamo.backends.debugging import aot_eager
from torch.autograd import forward_ad, gradgradcheck
from torch.func import functional_call, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmpsa import PSA
from mmpsa.compatibility import release
from mmpsa.ops import (
    BACKENDS,
    availability,
    backends,
    choice,
    composite,
    function,
    polarized_self_attention,
    reference,
    safety_net,
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
    assert block.served_by(images(4)) == 'reference'
    assert PSA(4).backend is None


def test_unknown_backend_is_refused(monkeypatch):
    names = r"'reference', 'triton', 'cpp', 'torch'"
    allowed = rf"must be one of \({names}\), got 'cuda'"
    with pytest.raises(ValueError, match=f'^backend {allowed}'):
        PSA(4, backend='cuda')
    monkeypatch.setenv('MMPSA_BACKEND', 'cuda')
    with pytest.raises(ValueError, match=f'^MMPSA_BACKEND {allowed}'):
        PSA(4)
    block = PSA(4, backend='torch')
    with pytest.raises(ValueError, match=f'^backend {allowed}'):
        polarized_self_attention(images(4), block.weights, block.spec, 'cuda')


@pytest.mark.parametrize('variant, layout', KINDS)
def test_default_on_the_cpu(variant, layout):
    block = make_block(variant, layout, 8)
    collapses = (variant, layout) != VALUE_MAP
    built = backends()['cpp'] is None
    served = 'cpp' if collapses and built else 'torch'
    assert block.served_by(images()) == served
    assert block.served_by(images(dtype=torch.float16)) == 'torch'


def test_reference_runs_the_equations(monkeypatch):
    block = make_block('paper', 'parallel', 8, backend='reference')
    expected = reference.polarized_self_attention(
        images(), block.weights, block.spec
    )
    monkeypatch.setattr(function, 'composite', None)
    monkeypatch.setattr(function, 'NAMESPACES', {})
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
    served = block.served_by(x)
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
    assert block.served_by(x) in ('cpp', 'torch')
    assert block(x).shape == x.shape


def test_without_triton_and_extension_torch_serves(monkeypatch):
    monkeypatch.setitem(availability.MISSING, 'triton', 'no Triton')
    monkeypatch.setitem(availability.MISSING, 'cpp', 'was not built')
    block = make_block('paper', 'parallel', 8, backend='triton')
    assert block.served_by(images()) == 'torch'
    assert block(images()).isfinite().all()


@pytest.fixture
def said(monkeypatch):
    """The lines of the log, by level."""
    lines = {logging.DEBUG: [], logging.WARNING: []}
    monkeypatch.setattr(
        choice,
        'print_log',
        lambda line, logger, level: lines[level].append(line),
    )
    monkeypatch.setattr(choice, '_LOGGED', set())
    choice._log.cache_clear()
    yield lines
    choice._log.cache_clear()


def test_warns_once_of_a_missing_extension(said, monkeypatch):
    monkeypatch.setitem(availability.MISSING, 'cpp', 'was not built: build it')
    make_block('paper', 'parallel', 8, backend='torch')(images())
    make_block('paper', 'parallel', 8)(images()[:0])
    make_block('paper', 'parallel', 8)(images(dtype=torch.float16))
    make_block(*VALUE_MAP, 8)(images())
    assert said[logging.WARNING] == []
    for layout in ('parallel', 'sequential', 'parallel'):
        make_block('paper', layout, 8)(images())
    (line,) = said[logging.WARNING]
    assert 'was not built: build it' in line


@pytest.mark.parametrize(
    'backend, kind, x, reason',
    [
        ('cpp', ('paper', 'parallel'), images(dtype=torch.float64), 'bfloat'),
        ('triton', ('paper', 'parallel'), images(2049), 'up to 2048 channels'),
        ('cpp', VALUE_MAP, images(), 'has no kernels'),
        (
            'reference',
            ('paper', 'parallel'),
            images(dtype=torch.bfloat16),
            'float32 and float64, with weights of that dtype',
        ),
    ],
)
def test_warns_once_of_a_backend_that_cannot_serve(
    backend, kind, x, reason, said
):
    if backends()[backend] is not None:
        pytest.skip(backends()[backend])
    block = make_block(*kind, x.shape[1], backend=backend)
    for _ in range(2):
        block(x)
    (line,) = said[logging.WARNING]
    assert f'as {backend} cannot serve it: ' in line and reason in line
    assert f': {block.served_by(x)} backend' in line


def test_warns_of_a_backend_that_is_missing(said, monkeypatch):
    monkeypatch.setitem(availability.MISSING, 'cpp', 'was not built: build it')
    make_block('paper', 'parallel', 8, backend='cpp')(images())
    (line,) = said[logging.WARNING]
    assert 'as cpp cannot serve it: was not built: build it' in line


@pytest.mark.parametrize('backend', ['cpp', 'torch', 'reference'])
def test_warns_of_a_backend_that_layers_replace(said, backend):
    block = make_block('paper', 'parallel', 8, backend=backend)
    block.ch_wv.register_forward_hook(lambda *_: None)
    for _ in range(2):
        block(images())
    (line,) = said[logging.WARNING]
    assert f'layers backend, as {backend} cannot serve it: a layer ' in line


def test_log_says_once_which_ran(said):
    for backend in ('torch', 'reference'):
        block = make_block('paper', 'parallel', 8, backend=backend)
        for x in (images(), images(), images()[:1]):
            block(x)
    assert said[logging.DEBUG] == [
        f'PSA, paper parallel, torch.float32, cpu: {backend} backend'
        for backend in ('torch', 'reference')
    ]


@pytest.mark.parametrize('variant, layout', COLLAPSED)
@pytest.mark.parametrize('backend', ['cpp', 'triton'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')
def test_saved_for_backward(variant, layout, backend, dtype):
    """X itself, and a few numbers for each channel and position."""
    block = make_block(variant, layout, 64, backend=backend)
    x = torch.randn(2, 64, 24, 24).to(dtype).requires_grad_()
    if block.served_by(x) != backend:
        pytest.skip(f'{backend} is not there')
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
    release(torch.__version__) < (2, 7, 0),
    reason='compiled and exported look the same, and get plain torch',
)
@pytest.mark.parametrize('variant, layout', KINDS)
def test_compile(variant, layout):
    """The graph has the operator, of what has kernels."""
    block, graphs = make_block(variant, layout, 8), []

    def compiler(graph, inputs):
        graphs.append(graph.code)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=compiler)
    for _ in range(2):
        for ours, expected in zip(
            gradients(block, images(), compiled), gradients(block, images())
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        if block.mask_scale is not None:  # the graph reads what is there now
            block.mask_scale.data.mul_(0.5)
    (code,) = graphs
    has_kernels = block.served_by(images()) == 'cpp'
    assert ('ops.mmpsa.psa' in code) == has_kernels


@pytest.mark.slow
@pytest.mark.skipif(
    release(torch.__version__) < (2, 4, 0),
    reason='torch.library.opcheck came with torch 2.4',
)
@pytest.mark.parametrize('variant, layout', COLLAPSED)
@pytest.mark.parametrize('backend', ['cpp', 'triton'])
@pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')
def test_opcheck(variant, layout, backend):
    block = make_block(variant, layout, 8, backend=backend)
    x = images().requires_grad_()
    if block.served_by(x) != backend:
        pytest.skip(f'{backend} is not there')
    name = 'mmpsa' if backend == 'cpp' else 'mmpsa_bare'
    ops = getattr(torch.ops, name)
    weights = [weight for weight in block.weights if weight is not None]
    last = x.detach().to(memory_format=torch.channels_last)
    for image in (x, last, x.detach().bfloat16()):
        torch.library.opcheck(ops.psa, (image, weights, *block.spec))
        y, maps, vectors = ops.psa(image.detach(), weights, *block.spec)
        torch.library.opcheck(
            ops.psa_backward,
            (y, image, weights, maps, vectors, *block.spec),
            test_utils=('test_schema', 'test_faketensor'),
        )


@pytest.mark.skipif(
    release(torch.__version__) < (2, 6, 0),
    reason='torch 2.1 cannot export a named tuple with properties',
)
@pytest.mark.parametrize('variant, layout', KINDS)
def test_export_has_plain_operators(variant, layout):
    block = make_block(variant, layout, 8)
    program = torch.export.export(block, (images(),))
    assert 'mmpsa' not in str(program.graph)
    torch.testing.assert_close(program.module()(images()), block(images()))


LAUNCHES = {'paper': (3, 4), 'official': (5, 4)}
# Operators that launch nothing.
FREE = (
    'aten.empty', 'aten.new_empty', 'aten.empty_like', 'aten.view',
    'aten._unsafe_view', 'aten.slice', 'aten.select', 'aten.detach',
    'aten.unsqueeze',
)  # fmt: skip


class Recorder(TorchDispatchMode):
    """Operators of torch that launch a kernel on a GPU."""

    def __init__(self):
        super().__init__()
        self.launched = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if not str(op).startswith(FREE):
            self.launched.append(str(op))
        return op(*args, **(kwargs or {}))


@pytest.mark.skipif(
    availability.MISSING['triton'], reason='there is no Triton to launch with'
)
@pytest.mark.parametrize('variant, layout', COLLAPSED)
@pytest.mark.parametrize('images, channels', [(2, 8), (2, 384), (32, 512)])
def test_launches(variant, layout, images, channels, monkeypatch):
    """Three forward, four backward; five forward in the authors' form.

    And none of torch's beside them.
    """
    from mmpsa.ops import triton_kernels as kernels

    block = make_block(variant, layout, channels)
    launches = []
    monkeypatch.setattr(
        kernels, '_launch', lambda kernel, *args, **_: launches.append(kernel)
    )
    x = torch.randn(images, channels, 6, 5)
    weights = [weight for weight in block.weights if weight is not None]
    with torch.no_grad(), Recorder() as recorder:
        y, *saved = kernels.psa(x, weights, *block.spec)
        forward = len(launches)
        kernels.psa_backward(y, x, weights, *saved, *block.spec)
    assert (forward, len(launches) - forward) == LAUNCHES[variant]
    assert recorder.launched == []


@pytest.fixture
def net(monkeypatch):
    """The safety net, in place; what it says."""
    if backends()['triton'] is not None:
        pytest.skip(backends()['triton'])
    lines = []
    operators = triton_operators.GUARDED
    monkeypatch.setitem(function.NAMESPACES, 'triton', operators)
    monkeypatch.setattr(safety_net, 'REFUSED', set())
    monkeypatch.setattr(safety_net, 'COMPARED', set())
    monkeypatch.setattr(
        safety_net,
        'print_log',
        lambda line, logger, level: (
            lines.append(line) if level == logging.WARNING else None
        ),
    )
    return lines


def fail(error):
    def kernel(*args, **kwargs):
        raise error

    return kernel


def spoil(monkeypatch, name, wrong):
    """Let a kernel return what ``wrong`` makes of its results."""
    from mmpsa.ops import triton_kernels

    right = getattr(triton_kernels, name)
    monkeypatch.setattr(
        triton_kernels, name, lambda *args: wrong(*right(*args))
    )


def count_fallbacks(monkeypatch):
    """The dtypes in which plain torch computes a forward."""
    dtypes, forward = [], composite.forward

    def counting(x, *args):
        dtypes.append(x.dtype)
        return forward(x, *args)

    monkeypatch.setattr(composite, 'forward', counting)
    return dtypes


INTERPRETED = pytest.mark.filterwarnings(
    'ignore:::triton.runtime.interpreter',
    'ignore::RuntimeWarning:numpy',
)
ERRORS = [
    RuntimeError('Triton Error [CUDA]: no such instruction'),
    OSError('no such instruction'),
    ImportError('no such instruction'),
    subprocess.CalledProcessError(1, 'no such instruction'),
]


@pytest.mark.parametrize('error', ERRORS, ids=lambda e: type(e).__name__)
def test_what_a_failure_raises(error, net, monkeypatch):
    monkeypatch.setattr('mmpsa.ops.triton_kernels.psa', fail(error))
    block = make_block('paper', 'parallel', 8, backend='triton')
    assert block(images()).isfinite().all()
    assert type(error).__name__ in net[0] and str(error) in net[0]


@pytest.mark.parametrize('name', ['psa', 'psa_backward'])
@pytest.mark.parametrize('variant, layout', COLLAPSED)
@INTERPRETED
def test_training_survives_a_kernel_that_fails(
    name, variant, layout, net, monkeypatch
):
    block, x = make_block(variant, layout, 8, backend='triton'), images()
    block.backend = 'torch'
    expected = gradients(block, x)
    block.backend = 'triton'
    monkeypatch.setattr(f'mmpsa.ops.triton_kernels.{name}', fail(ERRORS[0]))
    for _ in range(2):
        for ours, grad in zip(gradients(block, x), expected):
            torch.testing.assert_close(ours, grad, rtol=1e-4, atol=1e-4)
    (said,) = net
    assert f'kernels of {name} failed for {variant} {layout}' in said
    assert 'no such instruction' in said and 'MMPSA_BACKEND=torch' in said
    assert block.served_by(x) != 'triton'


def test_errors_of_triton_are_failures(net, monkeypatch):
    from triton.runtime.errors import OutOfResources

    error = OutOfResources(300000, 232448, 'shared memory')
    monkeypatch.setattr('mmpsa.ops.triton_kernels.psa', fail(error))
    block = make_block('paper', 'parallel', 8, backend='triton')
    assert block(images()).isfinite().all()
    assert 'shared memory' in net[0]


@INTERPRETED
def test_a_failure_concerns_its_kind_alone(net, monkeypatch):
    monkeypatch.setattr(
        'mmpsa.ops.triton_kernels.psa', fail(RuntimeError('too large'))
    )
    block = make_block('paper', 'parallel', 8, backend='triton')
    block(images())
    assert block.served_by(images()) != 'triton'
    monkeypatch.undo()
    for kind, x in (
        (('paper', 'sequential'), images()),
        (('official', 'parallel'), images()),
        (('paper', 'parallel'), images(10)),
        (('paper', 'parallel'), images(dtype=torch.bfloat16)),
        (
            ('paper', 'parallel'),
            images().to(memory_format=torch.channels_last),
        ),
    ):
        other = make_block(*kind, x.shape[1], backend='triton')
        assert other.served_by(x) == 'triton'


@pytest.mark.parametrize(
    'error',
    [
        torch.cuda.OutOfMemoryError('none left'),
        RuntimeError('Triton Error [CUDA]: out of memory'),
        TypeError("got an unexpected argument 'x'"),
        KeyError('x'),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_failure_of_a_kernel(error, net, monkeypatch):
    block = make_block('paper', 'parallel', 8, backend='triton')
    monkeypatch.setattr('mmpsa.ops.triton_kernels.psa', fail(error))
    with pytest.raises(type(error)):
        block(images())
    assert block.served_by(images()) == 'triton'
    assert net == []


def test_wrong_arguments_are_no_failure(net):
    block = make_block('paper', 'parallel', 8, backend='triton')
    weights = block.weights._replace(ch_wv=torch.zeros(8, 4, 1, 1))
    with pytest.raises(RuntimeError, match='ch_wv must be of shape'):
        polarized_self_attention(images(), weights, block.spec, 'triton')
    assert block.served_by(images()) == 'triton' and net == []


@pytest.mark.parametrize('start', ['random', 'default', 'identity'])
@pytest.mark.parametrize('dtype', availability.DTYPES['triton'])
@pytest.mark.parametrize('variant, layout', COLLAPSED)
@INTERPRETED
def test_right_kernels_agree(start, dtype, variant, layout, net, monkeypatch):
    """Each is compared once, and serves."""
    if start == 'random':
        block = make_block(variant, layout, 24, backend='triton')
    elif variant == 'official' and start == 'identity':
        pytest.skip('it has no such start')
    else:
        torch.manual_seed(0)
        block = PSA(24, layout, variant, start == 'identity', 'triton')
    dtypes = count_fallbacks(monkeypatch)
    for x in (images(24), images(24).relu()):
        gradients(block, x.to(dtype))
    assert net == []
    assert block.served_by(x.to(dtype)) == 'triton'
    assert dtypes == [torch.float64] * 2


@pytest.mark.parametrize('dtype', availability.DTYPES['triton'])
@pytest.mark.parametrize('variant, layout', COLLAPSED)
@INTERPRETED
def test_wrong_output(dtype, variant, layout, net, monkeypatch):
    block = make_block(variant, layout, 8, backend='torch')
    x = images(dtype=dtype)
    expected = gradients(block, x)
    block.backend = 'triton'

    def wrong(y, maps, vectors):
        y[1, 3, 2, 1] += 0.1 * y.abs().max()
        return y, maps, vectors

    spoil(monkeypatch, 'psa', wrong)
    for _ in range(2):
        for ours, grad in zip(gradients(block, x), expected):
            torch.testing.assert_close(ours, grad, rtol=1e-2, atol=1e-2)
    (said,) = net
    assert f'kernels of psa are wrong for {variant} {layout}, {dtype}' in said
    assert '8 channels, NCHW' in said
    stated = float(re.search(r'by (\S+) of the largest value', said)[1])
    assert stated == pytest.approx(0.1, rel=0.1) and 'report' in said
    assert block.served_by(x) != 'triton'


@pytest.mark.parametrize(
    'variant, layout', [('paper', 'sequential'), ('official', 'parallel')]
)
@INTERPRETED
def test_each_wrong_gradient(variant, layout, net, monkeypatch):
    """One at a time; that of the attention's bias is zero."""
    block = make_block(variant, layout, 8, backend='torch')
    x = images()
    expected = gradients(block, x)
    block.backend = 'triton'
    at = 0

    def wrong(dx, dweights):
        grads = [dx, *dweights]
        peak = max(grad.abs().max().item() for grad in grads)
        first = grads[at].view(-1)[:1]
        first += max(0.1 * grads[at].abs().max().item(), 1e-3 * peak)
        return dx, dweights

    spoil(monkeypatch, 'psa_backward', wrong)
    for at in range(len(expected)):
        safety_net.REFUSED.clear()
        safety_net.COMPARED.clear()
        for ours, grad in zip(gradients(block, x), expected):
            torch.testing.assert_close(ours, grad, rtol=1e-4, atol=1e-4)
        assert 'kernels of psa_backward are wrong' in net.pop()
        assert block.served_by(x) != 'triton'
    assert net == []


@INTERPRETED
def test_a_result_that_is_no_number_is_wrong(net, monkeypatch):
    def wrong(y, *saved):
        y[0, 0, 0, 0] = float('nan')
        return (y, *saved)

    spoil(monkeypatch, 'psa', wrong)
    block = make_block('paper', 'parallel', 8, backend='triton')
    assert block(images()).isfinite().all()
    assert 'by inf of the largest' in net[0]


@pytest.mark.parametrize(
    'dtype, fine', [(torch.float32, 5e-4), (torch.bfloat16, 1e-2)]
)
@INTERPRETED
def test_differences_that_are_allowed(dtype, fine, net, monkeypatch):
    def wrong(y, *saved):
        y[0] *= 1 + fine
        return (y, *saved)

    spoil(monkeypatch, 'psa', wrong)
    block = make_block('paper', 'parallel', 8, backend='triton')
    block(images(dtype=dtype))
    assert net == [] and block.served_by(images(dtype=dtype)) == 'triton'


@INTERPRETED
def test_compares_each_kind_once(net, monkeypatch):
    dtypes = count_fallbacks(monkeypatch)
    block = make_block('paper', 'sequential', 8, backend='triton')
    for _ in range(3):
        block(images())
        block(images()[:1])
    assert len(dtypes) == 1
    gradients(block, images())
    assert len(dtypes) == 2
    block(images(dtype=torch.bfloat16))
    block(images().to(memory_format=torch.channels_last))
    make_block('paper', 'channel', 8, backend='triton')(images())
    make_block('paper', 'sequential', 10, backend='triton')(images(10))
    assert len(dtypes) == 6


@INTERPRETED
def test_compares_nothing_while_a_graph_is_captured(net, monkeypatch):
    monkeypatch.setattr(safety_net, '_is_capturing', lambda x: True)
    dtypes = count_fallbacks(monkeypatch)
    block = make_block('paper', 'parallel', 8, backend='triton')
    gradients(block, images())
    assert dtypes == [] and safety_net.COMPARED == set()


@pytest.mark.parametrize(
    'error',
    [
        torch.cuda.OutOfMemoryError('none left'),
        RuntimeError('CUBLAS_STATUS_ALLOC_FAILED'),
        RuntimeError('cuBLAS is not deterministic'),
    ],
    ids=str,
)
@INTERPRETED
def test_compares_nothing_where_torch_fails(error, net, monkeypatch):
    monkeypatch.setattr(composite, 'forward', fail(error))
    block = make_block('paper', 'parallel', 8, backend='triton')
    for _ in range(2):
        gradients(block, images())
    assert net == [] and block.served_by(images()) == 'triton'


@pytest.mark.parametrize(
    'variant, layout, channels, scale',
    [
        ('paper', 'parallel', 2, 10),
        ('paper', 'sequential', 2, 10),
        ('paper', 'channel', 2, 10),
        ('paper', 'parallel', 8, 30),
        ('official', 'parallel', 24, 10),
    ],
)
@INTERPRETED
def test_gradients_that_cancel_are_noise(
    variant, layout, channels, scale, net
):
    """Plain torch in float32 is as far from the exact ones."""
    block = make_block(variant, layout, channels, backend='triton')
    torch.manual_seed(scale)
    gradients(block, scale * torch.randn(2, channels, 6, 5))
    assert net == []


@INTERPRETED
def test_overflow_in_half_precision_is_not_wrong(net):
    block = make_block('paper', 'parallel', 8, backend='triton')
    x = images(dtype=torch.float16).requires_grad_()
    out = block(x)
    (dx,) = torch.autograd.grad(out, x, torch.full_like(out, 6e4))
    assert not dx.isfinite().all()
    assert net == []


@pytest.mark.parametrize('factor', [0.0, float('inf')])
@INTERPRETED
def test_compares_again_where_values_say_nothing(factor, net, monkeypatch):
    """Scaled losses overflow at first, and frozen ones are zero."""
    block = make_block('paper', 'parallel', 8, backend='triton')
    spoil(monkeypatch, 'psa_backward', lambda dx, grads: (dx * 1.01, grads))
    gradients(block, images(), lambda x: block(x) * factor)
    assert net == [] and block.served_by(images()) == 'triton'
    gradients(block, images())
    assert 'are wrong' in net[0]


@pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')
def test_autograd_of_interpreted_kernels_is_python():
    """The same schema, shapes and derivative serve both."""
    block = make_block('paper', 'parallel', 8, backend='triton')
    if block.served_by(images()) != 'triton':
        pytest.skip(backends()['triton'])
    out = block(images().requires_grad_())
    assert type(out.grad_fn).__name__ == '_AutogradBackward'


@pytest.mark.parametrize('dtype', AUTOCAST_DTYPES)
def test_backward_under_autocast(dtype):
    block, x = make_block('paper', 'parallel', 8), images()
    expected = gradients(block, x)
    with torch.autocast('cpu', dtype=dtype):
        grads = gradients(block, x)
    for ours, grad in zip(grads, expected):
        assert torch.equal(ours, grad)


@pytest.mark.parametrize('backend', ['torch', 'reference'])
def test_a_device_that_autocast_does_not_know(backend, monkeypatch):
    """As ``mps`` for torch 2.1, ``meta`` for any."""
    block = make_block('paper', 'sequential', 8, backend=backend)
    expected = gradients(block, images())

    def unknown(device_type, **kwargs):
        raise RuntimeError(f'unsupported autocast device_type {device_type!r}')

    monkeypatch.setattr(torch, 'autocast', unknown)
    for ours, grad in zip(gradients(block, images()), expected):
        assert torch.equal(ours, grad)
    assert all(mask.isfinite().all() for mask in block.masks(images()))


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
    monkeypatch.setitem(availability.MISSING, 'cpp', 'was not built')
    monkeypatch.setitem(availability.MISSING, 'triton', 'no Triton')
    reasons = backends()
    assert reasons['reference'] is reasons['torch'] is None
    assert reasons['cpp'] == 'was not built'
    assert 'Triton' in reasons['triton']
