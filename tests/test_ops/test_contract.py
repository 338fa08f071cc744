"""What the operator refuses: its kernels read and write memory unchecked."""

import pytest
import torch
from helpers import KINDS, make_block

from mmpsa.ops import availability, backends, masks, polarized_self_attention

COLLAPSED = [kind for kind in KINDS if kind != ('official', 'sequential')]
# Each kernel, and what computes shapes for tracing.
KERNELS = ('cpp', 'triton', 'meta')
pytestmark = pytest.mark.filterwarnings('ignore:::triton.runtime.interpreter')


class Call:
    """The arguments of one call, to be spoilt; on the kernel's device."""

    def __init__(self, kernel, kind=('paper', 'parallel'), channels=8):
        device = 'cpu'
        self.ops = torch.ops.mmpsa
        if kernel == 'meta':
            device = 'meta'
        elif backends()[kernel] is not None:
            pytest.skip(backends()[kernel])
        elif kernel == 'triton' and torch.cuda.is_available():
            device = 'cuda'
        elif kernel == 'triton':
            self.ops = torch.ops.mmpsa_bare
        block = make_block(*kind, channels).to(device)
        self.names = [
            name
            for name, weight in block.weights._asdict().items()
            if weight is not None
        ]
        self.weights = [
            weight.detach() for weight in block.weights if weight is not None
        ]
        self.spec = list(block.spec)
        self.x = torch.rand(2, channels, 4, 5).to(device)

    def psa(self):
        return self.ops.psa(self.x, self.weights, *self.spec)

    def saved(self):
        self.g, self.maps, self.vectors = self.psa()
        return self

    def backward(self):
        return self.ops.psa_backward(
            self.g, self.x, self.weights, self.maps, self.vectors, *self.spec
        )

    def refused(self, message):
        """By both directions, with autograd and without."""
        with pytest.raises(RuntimeError, match=message):
            self.psa()
        with pytest.raises(RuntimeError, match=message), torch.no_grad():
            self.psa()
        with torch.inference_mode(), pytest.raises(
            RuntimeError, match=message
        ):
            self.psa()
        with pytest.raises(RuntimeError, match=message):
            self.backward()


@pytest.fixture(params=KERNELS)
def call(request):
    return Call(request.param).saved()


@pytest.mark.parametrize(
    'shape',
    [(8, 4, 5), (2, 8, 20), (2, 8, 4, 5, 1), (8,), ()],
)
def test_shape_of_x(call, shape):
    call.x = torch.zeros(shape, device=call.x.device)
    call.refused('x must be of shape N×C×H×W')


@pytest.mark.parametrize('channels', [1, 7, 9, 16])
def test_channels_of_x(call, channels):
    call.x = torch.zeros(2, channels, 4, 5, device=call.x.device)
    call.refused(f'ch_wq must be of shape .* {channels} channels')


@pytest.mark.parametrize(
    'shape', [(0, 8, 4, 5), (2, 0, 4, 5), (2, 8, 0, 5), (2, 8, 4, 0)]
)
def test_empty_x(call, shape):
    call.x = torch.zeros(shape, device=call.x.device)
    call.refused('x must have elements')


@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.int32, torch.uint8, torch.complex64]
)
def test_dtype_of_x(call, dtype):
    call.x = call.x.to(dtype)
    call.refused('x must be of one of .*bfloat16')


def test_half_precision_is_not_read_as_another():
    call = Call('cpp').saved()
    call.x = call.x.half()
    call.refused('x must be of')


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('kind', COLLAPSED)
def test_shape_of_each_weight(kernel, kind):
    """Also of one that has as many numbers as it must have."""
    call = Call(kernel, kind).saved()
    for i, (name, weight) in enumerate(zip(call.names, list(call.weights))):
        size = tuple(weight.shape)
        wrong = {
            (weight.numel(),),
            (weight.numel(), 1, 1, 1),
            size[::-1],
            size[1:2] + size[:1] + size[2:],
            (2 * weight.numel(), *size[1:]),
            (0, *size[1:]),
            (),
        } - {size}
        for shape in sorted(wrong):
            call.weights[i] = weight.new_zeros(shape)
            call.refused(f'{name} must be of shape')
        call.weights[i] = weight


def test_dtype_of_weights(call):
    call.weights[2] = call.weights[2].int()
    call.refused('ch_wv must be of a floating-point dtype')


def test_number_of_weights(call):
    weights = call.weights
    for call.weights in (weights[:-1], [*weights, weights[-1]], []):
        call.refused(f'weights must be {len(weights)} tensors')


@pytest.mark.parametrize('kernel', ['cpp', 'triton'])
def test_device_of_weights(kernel):
    call = Call(kernel).saved()
    call.weights[3] = call.weights[3].to('meta')
    call.refused('ch_bv must be on the device of x')


@pytest.mark.parametrize('kernel', ['cpp', 'triton'])
def test_weights_without_strides(kernel):
    """torch's dispatcher finds no kernel for them."""
    call = Call(kernel).saved()
    dense = call.weights[2]
    for call.weights[2] in (
        dense.to_sparse(),
        torch.quantize_per_tensor(dense.cpu(), 0.1, 0, torch.qint8),
    ):
        call.refused('mmpsa')


@pytest.mark.parametrize(
    'spec, message',
    [
        (('papr', 'parallel'), 'variant must be one of .*papr'),
        (('', ''), 'variant must be one of'),
        (('paper', 'both'), 'layout must be one of .*both'),
        (('official', 'channel'), 'layout must be one of .*channel'),
        (('official', 'sequential'), 'has no kernel'),
    ],
)
def test_unknown_spec(call, spec, message):
    call.spec[:2] = spec
    call.refused(message)


def other_shapes(tensor):
    yield tensor.new_zeros(tensor.numel())
    yield tensor[:1]
    yield tensor[..., :-1]
    yield tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
    yield tensor.new_zeros(tensor.shape[::-1])
    yield tensor.new_zeros(0)


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('kind', COLLAPSED)
@pytest.mark.parametrize('name', ['g', 'maps', 'vectors'])
def test_what_only_the_backward_takes(kernel, kind, name):
    call = Call(kernel, kind).saved()
    right = getattr(call, name)
    for wrong in (
        *other_shapes(right),
        right.double(),
        right.int(),
        *([right.to('meta')] if kernel != 'meta' else []),
    ):
        if wrong.shape == right.shape and wrong.dtype == right.dtype:
            if wrong.device == right.device:
                continue  # a dimension of one, cut to one
        setattr(call, name, wrong)
        with pytest.raises(RuntimeError, match=f'{name} must be'):
            call.backward()


@pytest.mark.parametrize('kernel', ['cpp', 'triton'])
def test_saved_tensors_may_lie_otherwise(kernel):
    call = Call(kernel).saved()
    expected = call.backward()
    for name in ('g', 'maps', 'vectors'):
        wide = torch.stack((getattr(call, name),) * 2, -1)
        setattr(call, name, wide[..., 0])
        assert not getattr(call, name).is_contiguous()
    dx, dweights = call.backward()
    torch.testing.assert_close(dx, expected[0])
    torch.testing.assert_close(dweights, expected[1])


@pytest.mark.parametrize('backend', ['reference', 'triton', 'cpp', 'torch'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('built', [True, False])
def test_public_function(backend, kind, built, monkeypatch):
    """Plain torch, too: it would broadcast some of them, or fail within."""
    if backends()[backend] is not None:
        pytest.skip(backends()[backend])
    if not built:
        monkeypatch.setitem(availability.MISSING, 'cpp', 'not built')
    block, x = make_block(*kind, 8), torch.rand(2, 8, 4, 5)
    for name, weight in block.weights._asdict().items():
        if weight is None:
            continue
        for wrong in (
            weight.new_zeros(weight.numel() + 1),
            weight.new_zeros((2 * weight.numel(), *weight.shape[1:])),
            weight.new_zeros((0, *weight.shape[1:])),
            weight.int(),
            None,
        ):
            weights = block.weights._replace(**{name: wrong})
            for function in (
                lambda: polarized_self_attention(
                    x, weights, block.spec, backend
                ),
                lambda: masks(x, weights, block.spec),
            ):
                with pytest.raises(
                    (RuntimeError, ValueError),
                    match=f'{name} must|weights must',
                ):
                    function()


def test_transposed_weight_of_the_same_size():
    block = make_block('paper', 'parallel', 8)
    weights = block.weights._replace(ch_wv=torch.zeros(8, 4, 1, 1))
    with pytest.raises(
        RuntimeError,
        match=r'ch_wv must be of shape .4, 8, 1, 1. .* got .8, 4, 1, 1.$',
    ):
        polarized_self_attention(torch.rand(2, 8, 4, 5), weights, block.spec)
