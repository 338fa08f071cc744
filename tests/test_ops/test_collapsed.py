"""The collapsed forward against the equations line by line."""

import pytest
import torch
from helpers import AUTOCAST_DTYPES, KINDS, compare, extremes, make_block
from torch.autograd import gradcheck
from torch.func import functional_call

from mmpsa import PolarizedSelfAttention
from mmpsa.psa import LAYOUTS

CHANNELS = (1, 3, 17, 18, 64)


def served(variant, layout, channels):
    return (variant, layout) != ('official', 'sequential') or channels >= 8


@pytest.mark.parametrize('variant, layout', KINDS)
@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('size', [(1, 1), (7, 5), (1, 9)])
def test_equals_reference(variant, layout, channels, size):
    if not served(variant, layout, channels):
        with pytest.raises(ValueError, match='in_channels must be at least 8'):
            make_block(variant, layout, channels)
        return
    block = make_block(variant, layout, channels)
    torch.manual_seed(1)
    x = torch.randn(2, channels, *size)
    compare(block, x, 1e-5)
    compare(block.double(), x.double(), 1e-10)


@pytest.mark.parametrize('layout', LAYOUTS['paper'])
def test_rescaled_equals_reference(layout):
    block = make_block('paper', layout, 18, identity_init=True).double()
    assert block.mask_scale == (1 if layout == 'parallel' else 2)
    compare(block, torch.randn(2, 18, 5, 4, dtype=torch.double), 1e-10)


@pytest.mark.parametrize('variant, layout', KINDS)
def test_gradcheck(variant, layout):
    block = make_block(variant, layout, 9).double()
    names, parameters = zip(*block.named_parameters())

    def forward(x, *parameters):
        return functional_call(block, dict(zip(names, parameters)), (x,))

    x = torch.randn(2, 9, 3, 2, dtype=torch.double, requires_grad=True)
    assert gradcheck(forward, (x, *parameters))


@pytest.mark.parametrize('variant, layout', KINDS)
def test_memory_formats(variant, layout):
    block = make_block(variant, layout, 16).double()
    wide = torch.randn(3, 16, 8, 10, dtype=torch.double)
    strided = wide[:, :, ::2, 1::3]
    compare(block, strided, 1e-10)
    last = wide.to(memory_format=torch.channels_last)
    compare(block, last, 1e-10)
    out = block(last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert block(wide).is_contiguous()


@pytest.mark.parametrize('variant, layout', KINDS)
def test_empty_batch(variant, layout):
    block = make_block(variant, layout, 16)
    x = torch.randn(0, 16, 4, 4, requires_grad=True)
    out = block(x)
    assert out.shape == x.shape
    out.sum().backward()
    for parameter in block.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize(
    'variant, layout, identity_init',
    [(*kind, False) for kind in KINDS]
    + [('paper', layout, True) for layout in LAYOUTS['paper']],
)
@pytest.mark.parametrize(
    'dtype, peak',
    [(torch.float16, 16000), (torch.float32, 1e18), (torch.bfloat16, 1e18)],
)
def test_extreme_input_stays_finite(
    variant, layout, identity_init, dtype, peak
):
    torch.manual_seed(0)
    block = PolarizedSelfAttention(64, layout, variant, identity_init)
    for x in extremes(dtype, peak):
        for weights in (block.float(), block.to(dtype)):
            out = weights(x)
            assert out.dtype == dtype
            assert out.isfinite().all()
            assert all(
                mask.isfinite().all()
                for mask in weights.masks(x)
                if mask is not None
            )


@pytest.mark.parametrize('layout', LAYOUTS['paper'])
@pytest.mark.parametrize('factor', [1e12, 1e18])
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
def test_autocast_computes_in_float32(variant, layout, dtype):
    block = make_block(variant, layout, 32)
    for x in (torch.randn(2, 32, 16, 16), torch.randn(2, 32, 8, 8).to(dtype)):
        expected = block(x.float())
        with torch.autocast('cpu', dtype=dtype):
            out = block(x)
            masks = block.masks(x)
        assert out.dtype == x.dtype
        # Rounding the result is the only difference.
        assert torch.equal(out, expected.to(x.dtype))
        assert all(m.dtype == torch.float32 for m in masks if m is not None)
