"""The light pyramid: its layers, and that attention stands in its path."""

import pytest
import torch
from helpers import Probe  # noqa: F401 - registered by its import
from mmengine.registry import MODELS
from torch import nn

from mmpsa.light_fpn import LightFPN

WIDTHS = (8, 12, 16)


def pyramid(**kwargs):
    torch.manual_seed(0)
    return LightFPN(WIDTHS, 4, **kwargs).eval()


def maps():
    """Of odd sizes, whose halves are rounded up."""
    torch.manual_seed(1)
    sizes = (9, 7), (5, 4), (3, 2)
    return [torch.rand(2, c, *size) for c, size in zip(WIDTHS, sizes)]


def probe(factor, modules):
    return dict(cfg=dict(type='Probe', factor=factor), modules=modules)


def test_outputs():
    shapes = [tuple(x.shape) for x in pyramid()(maps())]
    assert shapes == [(2, 4, 9, 7), (2, 4, 5, 4), (2, 4, 3, 2)]


def test_the_finer_level_reads_the_gated_map():
    """Each level reads the next one alone, and nothing of a map of zeros."""
    inputs = maps()
    plain = pyramid()
    fine, middle, coarse = pyramid(plugins=[probe(0.0, 'fpn_convs.1')])(inputs)
    assert (middle == 0).all()
    torch.testing.assert_close(coarse, plain(inputs)[2])
    alone = plain.fpn_convs[0](
        plain.depthwise_convs[0](plain.lateral_convs[0](inputs[0]))
    )
    torch.testing.assert_close(fine, alone)
    assert not torch.allclose(fine, plain(inputs)[0])
    *_, coarse = pyramid(plugins=[probe(0.0, 'fpn_convs.2')])(inputs)
    assert (coarse == 0).all()


def test_every_level_takes_a_plugin():
    built = MODELS.build(
        dict(
            type='LightFPN',
            in_channels=WIDTHS,
            out_channels=4,
            plugins=[probe(1.0, 'fpn_convs.*')],
        )
    )
    probes = [m for m in built.modules() if type(m).__name__ == 'Probe']
    assert [len(m.weight) for m in probes] == [4, 4, 4]


@pytest.mark.parametrize('separable', [True, False])
def test_parameters(separable):
    neck = pyramid(separable=separable)
    lateral = sum(c * 4 + 4 for c in WIDTHS)
    layer = 9 * 4 + 4 * 4 if separable else 9 * 4 * 4
    norm = 2 * 4
    count = sum(x.numel() for x in neck.parameters())
    assert count == lateral + 3 * (layer + norm)
    kinds = {type(m) for m in neck.modules()}
    assert {nn.BatchNorm2d, nn.ReLU} <= kinds


def test_what_its_convolutions_reach():
    """One output reads 3×3 positions of its own level."""
    for separable in (True, False):
        neck = pyramid(separable=separable)
        x = torch.zeros(1, WIDTHS[2], 7, 7)
        other = x.clone()
        other[..., 3, 3] = 1.0
        rest = [torch.zeros(1, width, 14, 14) for width in WIDTHS[:2]]
        before, after = (neck([*rest, y])[2] for y in (x, other))
        changed = (before != after).any(1)[0].nonzero()
        assert changed.min() == 2 and changed.max() == 4
