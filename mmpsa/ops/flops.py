"""Lets torch's FLOP counter count the operators."""

from functools import lru_cache

from .registration import OPS
from .spec import Spec


@lru_cache(maxsize=None)
def register_flops() -> None:
    """Give ``torch.utils.flop_counter`` the formulas.

    Blocks call this when they are made, and not the import of mmpsa, because
    torch's module imports Triton. It does nothing with torch 2.1, whose
    counter takes no formulas.
    """
    from torch.utils import flop_counter

    if hasattr(flop_counter, 'register_flop_formula'):
        register = flop_counter.register_flop_formula
        register(OPS.psa)(_forward)
        register(OPS.psa_backward)(_backward)


def _forward(x_shape, weights, *spec, **kwargs):
    """Twice the multiply-adds of the collapsed form.

    Of each position: two logits and two poolings. Of each image: four
    products with M×C matrices.
    """
    spec = Spec(*spec)
    images, channels, height, width = x_shape
    spatial, channel = spec.has_spatial, spec.has_channel
    each = channels * height * width * (3 * channel + spatial)
    matrices = 2 * max(channels // 2, 1) * channels * (channel + spatial)
    return 2 * images * (each + matrices)


def _backward(g_shape, x_shape, weights, maps, vectors, *spec, **kwargs):
    return 2 * _forward(x_shape, weights, *spec)
