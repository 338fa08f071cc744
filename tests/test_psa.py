"""The block: arguments, state dicts, initialisation."""

import pytest
import torch
from helpers import KINDS, load_script, make_block, randomise
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn

from mmpsa import PSA, PolarizedSelfAttention
from mmpsa.ops import LAYOUTS

PAPER_KEYS = {
    'channel': [
        ('ch_wv', (6, 12, 1, 1)),
        ('ch_wq', (1, 12, 1, 1)),
        ('ch_wz', (12, 6, 1, 1)),
        ('ln', (12,)),
    ],
    'spatial': [('sp_wv', (6, 12, 1, 1)), ('sp_wq', (6, 12, 1, 1))],
}


@pytest.mark.parametrize(
    'name', ['PolarizedSelfAttention', 'PSA', 'mmpsa.PSA']
)
def test_registered(name):
    block = MODELS.build(dict(type=name, in_channels=4))
    assert type(block) is PolarizedSelfAttention is PSA
    assert block._abbr_ == 'psa'


@pytest.mark.parametrize('layout', LAYOUTS['paper'])
def test_paper_keys(layout):
    """Those of the widely used re-implementation, in its shapes."""
    halves = [layout] if layout in PAPER_KEYS else list(PAPER_KEYS)
    expected = {}
    for half in halves:
        for name, shape in PAPER_KEYS[half]:
            expected[f'{name}.weight'] = shape
            expected[f'{name}.bias'] = shape[:1]
    block = PolarizedSelfAttention(12, layout)
    shapes = {k: tuple(v.shape) for k, v in block.state_dict().items()}
    assert shapes == expected


def test_official_keys():
    """Those of ``PSA_p`` and ``PSA_s`` of the authors' code."""
    masks = {
        'conv_q_right.weight': (1, 16, 1, 1),
        'conv_v_right.weight': (8, 16, 1, 1),
        'conv_q_left.weight': (8, 16, 1, 1),
        'conv_v_left.weight': (8, 16, 1, 1),
    }
    up = {
        'parallel': {'conv_up.weight': (16, 8, 1, 1)},
        'sequential': {
            'conv_up.0.weight': (2, 8, 1, 1),
            'conv_up.0.bias': (2,),
            'conv_up.1.weight': (2, 1, 1),
            'conv_up.1.bias': (2, 1, 1),
            'conv_up.3.weight': (16, 2, 1, 1),
            'conv_up.3.bias': (16,),
        },
    }
    for layout, extra in up.items():
        block = PolarizedSelfAttention(16, layout, 'official')
        shapes = {k: tuple(v.shape) for k, v in block.state_dict().items()}
        assert shapes == {**masks, **extra}


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(in_channels=0), 'in_channels must be a positive int, got 0'),
        (dict(in_channels='8'), "positive int, got '8'"),
        (dict(in_channels=True), 'positive int, got True'),
        (dict(in_channels=8, layout='both'), "layout must be .* got 'both'"),
        (dict(in_channels=8, variant='p'), "variant must be .* got 'p'"),
        (
            dict(in_channels=8, layout='channel', variant='official'),
            "layout must be .* variant='official', got 'channel'",
        ),
        (
            dict(in_channels=7, layout='sequential', variant='official'),
            'in_channels must be at least 8 .* got 7',
        ),
        (
            dict(in_channels=8, variant='official', identity_init=True),
            "identity_init needs variant='paper'",
        ),
        (
            dict(in_channels=8, identity_init=True, init_cfg=dict(type='X')),
            'identity_init and init_cfg exclude each other',
        ),
    ],
)
def test_refused_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PolarizedSelfAttention(**kwargs)


@pytest.mark.parametrize('layout', LAYOUTS['paper'])
@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
def test_identity_init(layout, dtype):
    block = PolarizedSelfAttention(10, layout, identity_init=True).to(dtype)
    x = torch.randn(2, 10, 6, 5).to(dtype)
    assert torch.equal(block(x), x)
    block.init_weights()
    assert torch.equal(block(x), x)
    # It is a start, not a dead end: gradients reach the gates.
    block(x).pow(2).sum().backward()
    gates = {'ln.bias', 'sp_wv.bias'}
    found = [p for name, p in block.named_parameters() if name in gates]
    assert found and all(parameter.grad.any() for parameter in found)


@pytest.mark.parametrize('initialised', [False, True])
@pytest.mark.parametrize('variant, layout', KINDS)
def test_default_start(variant, layout, initialised):
    """That of the authors' HRNet: N(0, 0.001), biases 0."""
    block = PSA(64, layout, variant)
    if initialised:
        randomise(block)
        block.init_weights()
    for name, module in block.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.eq(1).all() and not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            weight = module.weight
            assert abs(weight.std() / 0.001 - 1) < 8 / weight.numel() ** 0.5
            if name in ('conv_up.0', 'conv_up.3'):
                # never set by the authors: torch's own
                bound = weight[0].numel() ** -0.5
                largest = module.bias.abs().max()
                assert bound / 2 < largest <= bound
            elif module.bias is not None:
                assert not module.bias.any()


@pytest.mark.parametrize('variant, layout', KINDS)
def test_default_start_is_a_multiple_of_the_input(variant, layout):
    """Of x in the parallel layout, of x/2 for each mask elsewhere."""
    block = PSA(64, layout, variant)
    if variant == 'official' and layout == 'sequential':
        for name in ('conv_up.0', 'conv_up.3'):  # see the test above
            nn.init.zeros_(block.get_submodule(name).bias)
    torch.manual_seed(0)
    x = torch.randn(4, 64, 32, 24).relu()
    with torch.no_grad():
        y = block(x)
    factor = (x * y).sum() / (x * x).sum()
    expected = dict(parallel=1, sequential=0.25).get(layout, 0.5)
    assert abs(factor / expected - 1) < 0.005
    assert (y - factor * x).norm() < 0.01 * (factor * x).norm()


def test_second_init_weights_keeps_what_was_learnt():
    block = PolarizedSelfAttention(8, identity_init=True)
    block.init_weights()
    nn.init.constant_(block.ln.bias, 3.0)
    block.init_weights()  # mmengine warns of it
    assert (block.ln.bias == 3).all()


@pytest.mark.parametrize(
    'form', [dict(), dict(variant='official'), dict(layout='spatial')]
)
def test_a_factor_is_refused_where_there_is_none(form):
    """Also without the record of the layout, which some loaders drop."""
    weights = dict(PSA(8, 'sequential', identity_init=True).state_dict())
    block = PSA(8, **form)
    if form.get('layout'):
        block.load_state_dict(weights, strict=False)
        assert block.mask_scale == 2
        return
    with pytest.raises(ValueError, match='the weights have a mask_scale, 2'):
        block.load_state_dict(weights, strict=False)


@pytest.mark.parametrize('layout', ['sequential', 'channel', 'spatial'])
@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_rescaling_travels_with_the_weights(layout, load):
    rescaled = PolarizedSelfAttention(6, layout, identity_init=True)
    plain = make_block('paper', layout, 6)
    x = torch.randn(2, 6, 4, 4)
    expected = plain(x)

    adopted = PolarizedSelfAttention(6, layout)
    load(adopted, rescaled.state_dict(), strict=True)
    assert torch.equal(adopted(x), x)
    load(rescaled, plain.state_dict(), strict=True)
    assert torch.equal(rescaled(x), expected)
    # and on to the next file
    again = PolarizedSelfAttention(6, layout)
    load(again, adopted.state_dict(), strict=True)
    assert torch.equal(again(x), x)


def test_rescaling_survives_a_checkpoint_without_the_block():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), PolarizedSelfAttention(6, 'channel')
    )
    model[1] = PolarizedSelfAttention(6, 'channel', identity_init=True)
    x = torch.randn(1, 3, 4, 4)
    load_state_dict(model, nn.Sequential(nn.Conv2d(3, 6, 1)).state_dict())
    assert torch.equal(model(x), model[0](x))


class Model(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)
        self.psa = PolarizedSelfAttention(16, *args)


@pytest.fixture(params=[nn.Module.state_dict, get_state_dict])
def saved(request, tmp_path):
    """Weights of a sequential block that went through a file."""
    path = tmp_path / 'weights.pth'
    torch.save(request.param(Model('sequential')), path)
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_weights_of_another_form_are_refused(saved, load, strict):
    load(Model('sequential'), saved, strict=strict)
    with pytest.raises(
        ValueError,
        match="psa: .*layout='sequential', the block is of layout='parallel'"
        ".*build it with layout='sequential'",
    ):
        load(Model('parallel'), saved, strict=strict)
    with pytest.raises(ValueError, match="variant='paper', .*'official'"):
        load(Model('sequential', 'official'), saved, strict=strict)


def test_weights_without_a_record_load(saved):
    model = Model('parallel')
    load_state_dict(model, dict(saved), strict=True)
    assert torch.equal(model.psa.ch_wv.weight, saved['psa.ch_wv.weight'])


def test_publishing_keeps_the_record(saved, tmp_path):
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(state_dict=saved, meta={}), path)
    publish = load_script('tools/publish_model.py').publish
    published = publish(str(path), {}, True)
    with pytest.raises(ValueError, match="layout='sequential'"):
        load_state_dict(Model('parallel'), published['state_dict'])


def test_init_cfg_has_the_last_word():
    block = PolarizedSelfAttention(
        64, init_cfg=dict(type='Kaiming', layer='Conv2d')
    )
    assert block.ch_wv.weight.std() < 0.002
    block.init_weights()
    # of mmengine's defaults: fan_out, 32
    assert abs(block.ch_wv.weight.std() / (2 / 32) ** 0.5 - 1) < 0.1
    assert block.ln.weight.eq(1).all()


@pytest.mark.parametrize('layout', LAYOUTS['paper'])
def test_masks(layout):
    """What masks() returns is what forward gates with."""
    block = make_block('paper', layout, 8)
    x = torch.randn(2, 8, 5, 6)
    channel, spatial = block.masks(x)
    assert (channel is None) == (layout == 'spatial')
    assert (spatial is None) == (layout == 'channel')
    if channel is not None:
        assert channel.shape == (2, 8, 1, 1)
        assert 0 < channel.min() and channel.max() < 1
    if spatial is not None:
        assert spatial.shape == (2, 1, 5, 6)
    gate = {
        'parallel': lambda: channel + spatial,
        'sequential': lambda: channel * spatial,
        'channel': lambda: channel,
        'spatial': lambda: spatial,
    }[layout]()
    torch.testing.assert_close(block(x), x * gate)


def test_complexity_is_seen():
    """By mmengine's analysis: two poolings and two logits a position."""
    channels, size = 64, 32
    block = PolarizedSelfAttention(channels)
    x = torch.randn(1, channels, size, size)
    per_position = 4 * channels * size**2
    on_vectors = 4 * channels * channels // 2  # wv, wz, sp_wq, sp_wv
    total = FlopAnalyzer(block, (x,)).total()
    assert 0 <= total - per_position - on_vectors < 10 * channels
