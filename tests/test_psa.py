"""The block: arguments, state dicts, initialisation."""

import logging

import pytest
import torch
from helpers import KINDS, load_script, make_block, randomise
from mmengine.analysis import FlopAnalyzer
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn
from torch._subclasses import FakeTensorMode

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
    if layout != 'parallel':
        expected['mask_scale'] = ()
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


SCALED = [layout for layout in LAYOUTS['paper'] if layout != 'parallel']
# The loaders that the ecosystem has.
LOADERS = [nn.Module.load_state_dict, load_state_dict]


@pytest.fixture
def logged(monkeypatch):
    """The lines that loading logs, with their levels."""
    lines = []
    monkeypatch.setattr(
        'mmpsa.psa.print_log',
        lambda line, logger, level: lines.append((level, line)),
    )
    return lines


class Reimplementation(nn.Module):
    """The layers of the widely used block; its forward is not needed."""

    def __init__(self, channels=8):
        super().__init__()
        self.ch_wv = nn.Conv2d(channels, channels // 2, 1)
        self.ch_wq = nn.Conv2d(channels, 1, 1)
        self.ch_wz = nn.Conv2d(channels // 2, channels, 1)
        self.ln = nn.LayerNorm(channels)
        self.sp_wv = nn.Conv2d(channels, channels // 2, 1)
        self.sp_wq = nn.Conv2d(channels, channels // 2, 1)


def of_version_1(block):
    """The state dict as mmpsa 1.0 saved it: without a scale of 1."""
    weights = block.state_dict()
    weights._metadata['']['version'] = 1
    if weights.get('mask_scale') == 1:
        del weights['mask_scale']
    return weights


@pytest.mark.parametrize('layout', SCALED)
@pytest.mark.parametrize('identity_init', [False, True])
def test_mask_scale_is_a_buffer(layout, identity_init):
    """Always there, whatever it is, and nothing that an optimizer sees."""
    block = PSA(8, layout, identity_init=identity_init)
    assert dict(block.named_buffers()) == {'mask_scale': block.mask_scale}
    assert block.mask_scale == (2 if identity_init else 1)
    assert block.mask_scale.dtype == torch.float32
    assert not block.mask_scale.requires_grad
    assert block.state_dict()['mask_scale'] == block.mask_scale
    assert block.state_dict()._metadata['']['version'] == 2
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert block.to(dtype).mask_scale == (2 if identity_init else 1)
        assert block.mask_scale.dtype == dtype


@pytest.mark.parametrize(
    'form', [dict(), dict(variant='official', layout='sequential')]
)
def test_no_mask_scale_where_masks_have_none(form):
    block = PSA(8, **form)
    assert block.mask_scale is None
    assert not list(block.named_buffers())


def test_what_a_block_computes_is_variant_and_layout():
    assert PSA(8, 'channel').spec == ('paper', 'channel')


@pytest.mark.parametrize('identity_init', [False, True])
@pytest.mark.parametrize('layout', SCALED)
def test_loading_what_fits(layout, identity_init):
    trained = PSA(8, layout, identity_init=True)
    for parameter in trained.parameters():
        nn.init.normal_(parameter)
    block, x = PSA(8, layout, identity_init=identity_init), images()
    own = block.state_dict()
    own.update({k: v for k, v in trained.state_dict().items() if k in own})
    block.load_state_dict(own)
    assert torch.equal(block(x), trained(x))


def test_distributed_checkpoint(tmp_path):
    """It reads only the keys that the state dict to fill has."""
    checkpoint = pytest.importorskip('torch.distributed.checkpoint')
    if not hasattr(checkpoint, 'save'):
        pytest.skip('it has another interface before torch 2.2')
    trained = PSA(8, 'sequential', identity_init=True)
    checkpoint.save(trained.state_dict(), checkpoint_id=tmp_path, no_dist=True)
    block, x = PSA(8, 'sequential'), images()
    own = block.state_dict()
    checkpoint.load(own, checkpoint_id=tmp_path, no_dist=True)
    block.load_state_dict(own)
    assert torch.equal(block(x), x)


def test_averaged_model_has_the_scale_of_its_source():
    """Also of one that was loaded after the copy was made."""
    block, x = PSA(8, 'sequential'), images()
    averaged = ExponentialMovingAverage(block)
    trained = PSA(8, 'sequential', identity_init=True)
    block.load_state_dict(trained.state_dict())
    averaged.update_parameters(block)
    assert torch.equal(averaged(x), x)


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('layout', SCALED)
def test_parameters_alone_lack_the_scale(layout, load, logged):
    """A plain dict: nothing tells whose it is."""
    trained = PSA(8, layout, identity_init=True)
    for identity_init in (False, True):
        block = PSA(8, layout, identity_init=identity_init)
        weights = dict(trained.named_parameters())
        with pytest.raises(RuntimeError, match='(?i)missing key.*mask_scale'):
            load(block, weights, strict=True)
        logged.clear()
        load(block, weights, strict=False)
        assert block.mask_scale == (2 if identity_init else 1)
    ((level, line),) = logged
    assert level == logging.WARNING
    assert 'The block keeps its own, 2' in line
    assert "state_dict['mask_scale'] = torch.ones(())" in line
    # and the remedy works
    weights['mask_scale'] = torch.ones(())
    load(block, weights, strict=True)
    assert block.mask_scale == 1


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('identity_init', [False, True])
def test_weights_of_the_reimplementation(
    identity_init, strict, load, logged, tmp_path
):
    torch.save(Reimplementation().state_dict(), tmp_path / 'theirs.pth')
    weights = torch.load(tmp_path / 'theirs.pth')
    block = PSA(8, 'sequential', identity_init=identity_init)
    load(block, weights, strict=strict)
    assert block.mask_scale == 1
    assert torch.equal(block.sp_wq.weight, weights['sp_wq.weight'])
    assert 'mask_scale' not in weights  # the caller's is as it was
    lines = [line for level, line in logged if level == logging.WARNING]
    assert len(lines) == identity_init
    assert all('The block had 2 and now has 1' in line for line in lines)


@pytest.mark.parametrize('load', LOADERS)
@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('saved', [1, 2])
@pytest.mark.parametrize('own', [1, 2])
@pytest.mark.parametrize('layout', SCALED)
def test_files_of_mmpsa_1_0(layout, own, saved, strict, load, logged):
    trained = PSA(8, layout, identity_init=saved == 2)
    weights = of_version_1(trained)
    assert ('mask_scale' in weights) == (saved == 2)
    block, x = PSA(8, layout, identity_init=own == 2), images()
    load(block, weights, strict=strict)
    assert torch.equal(block(x), trained(x))
    assert block.mask_scale == saved
    assert len(logged) == (own != saved)
    for _, line in logged:
        assert str(own) in line and str(saved) in line


@pytest.mark.parametrize('load', LOADERS)
def test_a_scale_that_a_newer_file_lacks_is_missing(load, logged):
    trained = PSA(8, 'sequential', identity_init=True)
    weights = trained.state_dict()
    del weights['mask_scale']
    for own in (1, 2):
        block = PSA(8, 'sequential', identity_init=own == 2)
        with pytest.raises(RuntimeError, match='(?i)missing key.*mask_scale'):
            load(block, weights, strict=True)
        load(block, weights, strict=False)
        assert block.mask_scale == own
    assert logged == []


@pytest.mark.parametrize('load', LOADERS)
def test_half_precision_scale(load):
    """As ``publish_model --half`` writes it."""
    weights = PSA(8, 'channel', identity_init=True).half().state_dict()
    block = PSA(8, 'channel')
    load(block, weights, strict=True)
    assert block.mask_scale == 2
    assert block.mask_scale.dtype == torch.float32


@pytest.mark.parametrize('value', [0.0, -2.0, float('nan')])
@pytest.mark.parametrize('load', LOADERS)
def test_a_scale_that_cannot_be_is_refused(value, load):
    weights = PSA(8, 'sequential').state_dict()
    weights['mask_scale'] = torch.tensor(value)
    with pytest.raises(ValueError, match='mask_scale .* positive, got'):
        load(PSA(8, 'sequential'), weights, strict=False)


@pytest.mark.parametrize('form', [dict(), dict(variant='official')])
def test_a_factor_is_refused_where_there_is_none(form):
    """Also without the record of the layout, which some loaders drop."""
    weights = dict(PSA(8, 'sequential', identity_init=True).state_dict())
    block = PSA(8, **form)
    with pytest.raises(ValueError, match='the weights have a mask_scale, 2'):
        block.load_state_dict(weights, strict=False)
    weights['mask_scale'] = torch.ones(())  # which is no factor
    block.load_state_dict(weights, strict=not form)


def test_without_values():
    """Models are built and loaded without memory first."""
    for layout in LAYOUTS['paper']:
        block = PSA(8, layout, identity_init=True)
        empty = PSA(8, layout).to('meta')
        assert layout in repr(empty)
        empty.load_state_dict(block.state_dict(), assign=True)
        assert torch.equal(empty(images()), images())
        old = of_version_1(PSA(8, layout))
        empty.to('meta').load_state_dict(old, assign=True)
        assert empty(images()).isfinite().all()
        with FakeTensorMode():
            fake = PSA(8, layout, identity_init=True)
            assert layout in repr(fake)
            fake.load_state_dict(PSA(8, layout).state_dict())
        block.to('meta').to_empty(device='cpu').reset_parameters()
        assert torch.equal(block(images()), images())


@pytest.mark.parametrize('layout', LAYOUTS['paper'])
def test_initialising_a_whole_network(layout):
    """It undoes the identity; the block's own method brings it back."""

    def init(module):
        if isinstance(module, (nn.Conv2d, nn.LayerNorm)):
            module.reset_parameters()

    block, x = PSA(8, layout, identity_init=True), images()
    block.apply(init)
    assert not torch.allclose(block(x), x)
    block.reset_parameters()
    assert torch.equal(block(x), x)


def images():
    torch.manual_seed(1)
    return torch.randn(2, 8, 4, 5)


@pytest.mark.parametrize('layout', ['sequential', 'channel', 'spatial'])
@pytest.mark.parametrize('load', LOADERS)
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
@pytest.mark.parametrize('load', LOADERS)
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
        assert 0 < channel.min() and channel.max() < (block.mask_scale or 1)
    if spatial is not None:
        assert spatial.shape == (2, 1, 5, 6)
    gate = {
        'parallel': lambda: channel + spatial,
        'sequential': lambda: channel * spatial,
        'channel': lambda: channel,
        'spatial': lambda: spatial,
    }[layout]()
    torch.testing.assert_close(block(x), x * gate)


def test_a_counter_that_hooks_layers_sees_the_equations():
    """mmengine's analysis: two values and a query, one logit; two products."""
    channels, size = 64, 32
    block = PolarizedSelfAttention(channels)
    x = torch.randn(1, channels, size, size)
    inner, positions = channels // 2, size**2
    per_position = 3 * channels * inner + channels + 2 * inner
    total = FlopAnalyzer(block, (x,)).total()
    on_vectors = total - per_position * positions
    assert 0 <= on_vectors - inner * channels < 10 * channels
