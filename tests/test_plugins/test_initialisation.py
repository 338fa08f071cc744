"""Weights of plugins after init_weights: the values, not the calls."""

import copy
import logging
import random
from functools import partial

import numpy as np
import pytest
import torch
from helpers import build, images, randomise, upstream
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from mmpsa import insert_plugins
from mmpsa.plugins.randomness import own_random_numbers

BOTH = pytest.mark.parametrize('codebase', ['mmpose', 'mmseg'])
NAMES = pytest.mark.parametrize('name', ['HRNet', 'ResNet18', 'ResNet50'])


def psa(**kwargs):
    return dict(cfg=dict(type='PSA', **kwargs), position='after_conv1')


def context():
    return dict(
        cfg=dict(type='ContextBlock', ratio=0.5), position='after_conv2'
    )


def plugins_of(backbone, kind):
    found = [m for m in backbone.modules() if type(m).__name__ == kind]
    assert found
    return found


@MODELS.register_module()
class Gain(nn.Module):
    """A plugin that initialises itself in its constructor alone."""

    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, 1)
        nn.init.constant_(self.conv.weight, 0.25)

    def forward(self, x):
        return self.conv(x)


def assert_own_initialisation(backbone):
    """PSA's own: N(0, 0.001), biases 0, LayerNorm 1 and 0."""
    for block in plugins_of(backbone, 'PolarizedSelfAttention'):
        weight = torch.cat(
            [
                getattr(block, name).weight.flatten()
                for name in ('ch_wv', 'ch_wz', 'sp_wv', 'sp_wq')
            ]
        )
        assert abs(weight.std() / 0.001 - 1) < 8 / len(weight) ** 0.5
        assert block.ln.weight.eq(1).all()
        assert not block.ch_wv.bias.any()


@BOTH
@NAMES
def test_from_scratch(codebase, name):
    torch.manual_seed(0)
    gain = dict(cfg=dict(type='Gain'), position='after_conv1')
    backbone = build(codebase, name, plugins=[psa(), context(), gain])
    backbone.init_weights()
    assert_own_initialisation(backbone)
    for block in plugins_of(backbone, 'ContextBlock'):
        assert not block.channel_add_conv[-1].weight.any()
    # mmpose's HRNet would draw it from N(0, 0.001)
    for block in plugins_of(backbone, 'Gain'):
        assert block.conv.weight.eq(0.25).all()


PSA_IN_BLOCKS = dict(cfg=dict(type='PSA'), position='after_3x3')
PSA_IN_MODULES = dict(cfg=dict(type='PSA'), modules='*convs.*')


def segmentor(backbone=None, head=None, **kwargs):
    """A segmentor, with plugins in its backbone or in its head."""
    return dict(
        type='EncoderDecoder',
        _scope_='mmseg',
        backbone=dict(
            type='ResNet', depth=18, base_channels=8, plugins=backbone
        ),
        neck=dict(
            type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4
        ),
        decode_head=dict(
            type='FCNHead',
            in_channels=8,
            in_index=3,
            channels=8,
            num_classes=3,
            norm_cfg=dict(type='BN'),
            plugins=head,
        ),
        **kwargs,
    )


def nested(backbone=None, head=None):
    """A backbone in a backbone whose init_cfg draws for all convolutions."""
    net = dict(type='ResNetV1c', depth=18, base_channels=8, plugins=backbone)
    return dict(
        type='ICNet',
        _scope_='mmseg',
        backbone_cfg=net,
        layer_channels=(16, 64),
        light_branch_middle_channels=8,
        psp_out_channels=8,
        out_channels=(8, 8, 8),
        plugins=head and [dict(head[0], modules='conv_sub*.*')],
    )


def drawn_model(cfg):
    """A model's weights when built and when initialised, then all states."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    model = MODELS.build(copy.deepcopy(cfg))
    built = {k: v.clone() for k, v in model.state_dict().items()}
    model.init_weights()
    state = (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )
    return built, model.state_dict(), state


@MODELS.register_module()
class Drawn(nn.Module):
    """A plugin that draws from all generators to start."""

    def __init__(self, in_channels):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_channels, 1, 1))
        self.reset_parameters()

    def reset_parameters(self):
        noise = torch.rand(()) + np.random.rand() + random.random()
        nn.init.normal_(self.weight, mean=float(noise))

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize('kind', ['PSA', 'ContextBlock', 'Drawn'])
@pytest.mark.parametrize(
    'make',
    [
        segmentor,
        partial(segmentor, init_cfg=dict(type='Normal', layer='Conv2d')),
        nested,
    ],
    ids=['model', 'model with init_cfg', 'nested'],
)
@pytest.mark.parametrize(
    'places', [('backbone',), ('head',), ('backbone', 'head')]
)
def test_plugins_change_no_other_weight(make, kind, places):
    """With one seed, bit for bit, and so is what is drawn afterwards."""
    cfg = dict(type=kind, **(dict(ratio=0.5) if 'Con' in kind else {}))
    entries = dict(
        backbone=dict(PSA_IN_BLOCKS, cfg=cfg),
        head=dict(PSA_IN_MODULES, cfg=cfg),
    )
    *plain, state = drawn_model(make())
    *plugged, again = drawn_model(make(**{p: [entries[p]] for p in places}))
    assert state == again
    for ours, theirs in zip(plugged, plain):
        assert len(ours) > len(theirs)
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), key


def starts(*backbones, key='psa.ch_wv.weight'):
    """The weights of all plugins of one shape, which must differ."""
    found = [
        value
        for backbone in backbones
        for name, value in backbone.state_dict().items()
        if name.endswith(key) and len(value) == 4
    ]
    assert len(found) > len(backbones)
    return found


def assert_unlike(tensors):
    for i, a in enumerate(tensors):
        for b in tensors[:i]:
            assert not torch.equal(a, b)


@pytest.mark.parametrize('initialised', [False, True])
def test_plugins_never_start_alike(initialised):
    """In one call, in calls in a row, in two modules of one kind."""
    torch.manual_seed(0)
    backbones = [upstream('mmpose', 'ResNet18') for _ in range(2)]
    for postfix in ('', '_2'):
        entry = dict(
            cfg=dict(type='PSA', postfix=postfix), position='after_3x3'
        )
        for backbone in backbones:
            insert_plugins(backbone, [entry])
    if initialised:
        for backbone in backbones:
            backbone.init_weights()
    twice = starts(*backbones), starts(*backbones, key='psa_2.ch_wv.weight')
    assert_unlike([*twice[0], *twice[1]])


def test_the_same_seed_gives_the_same_plugins():
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        backbone = build('mmpose', 'ResNet18', plugins=[PSA_IN_BLOCKS])
        built = [x.clone() for x in starts(backbone)]
        backbone.init_weights()
        found.append(built + starts(backbone))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    torch.manual_seed(6)
    backbone = build('mmpose', 'ResNet18', plugins=[PSA_IN_BLOCKS])
    assert_unlike([found[0][0], starts(backbone)[0]])


def test_another_plugin_changes_no_plugin():
    """What two models share are also plugins."""
    found = []
    for more in ([], [dict(cfg=dict(type='Drawn'), position='output')]):
        torch.manual_seed(5)
        plugins = [*more, PSA_IN_BLOCKS]
        backbone = build('mmpose', 'ResNet18', plugins=plugins)
        backbone.init_weights()
        found.append(starts(backbone))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_cuda_is_not_initialised_for_plugins(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('CUDA would be seeded, now or later')

    monkeypatch.setattr(torch.cuda, '_lazy_call', refuse)
    monkeypatch.setattr(torch.cuda.random, '_lazy_call', refuse)
    monkeypatch.setattr(torch.cuda, '_lazy_init', refuse)
    plugins = [PSA_IN_BLOCKS, dict(PSA_IN_BLOCKS, position='output')]
    build('mmpose', 'ResNet18', plugins=plugins).init_weights()


def test_cuda_generators_are_put_back(monkeypatch):
    """Stand-ins for two devices."""
    states = [torch.tensor([n], dtype=torch.uint8) for n in (1, 2)]
    now = list(states)

    def seed(value):
        now[:] = [torch.tensor([9], dtype=torch.uint8)] * 2

    def put_back(values):
        now[:] = values

    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', lambda: list(now))
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seed)
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', put_back)
    with own_random_numbers(nn.Conv2d(1, 1, 1), 'psa'):
        assert now != states
    assert now == states


@BOTH
@NAMES
def test_backbone_is_initialised_as_upstream(codebase, name):
    """The same seed gives upstream's own weights the same values."""
    torch.manual_seed(0)
    theirs = upstream(codebase, name)
    theirs.init_weights()
    torch.manual_seed(0)
    ours = build(codebase, name)
    ours.init_weights()
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()):
        assert torch.equal(a, b)

    zeroed = [
        build(codebase, name, zero_init_residual=True, plugins=plugins)
        for plugins in (None, [psa(), dict(context(), position='after_conv1')])
    ]
    for backbone in zeroed:
        backbone.init_weights()
    plain, plugged = (
        {
            key
            for key, p in backbone.named_parameters()
            if not p.any() and 'psa' not in key and 'context' not in key
        }
        for backbone in zeroed
    )
    assert plain == plugged


@BOTH
@NAMES
@pytest.mark.parametrize(
    'layout', ['parallel', 'sequential', 'channel', 'spatial']
)
def test_identity_start_is_the_baseline(codebase, name, layout, tmp_path):
    """From a checkpoint without plugins: exactly its function."""
    baseline = randomise(upstream(codebase, name))
    torch.save(baseline.state_dict(), tmp_path / 'baseline.pth')
    backbone = build(
        codebase,
        name,
        plugins=[psa(layout=layout, identity_init=True)],
        init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'baseline.pth')
        ),
    )
    backbone.init_weights()
    x = images()
    for mode in (True, False):
        backbone.train(mode), baseline.train(mode)
        for a, b in zip(backbone(x), baseline(x)):
            assert torch.equal(a, b)


@BOTH
@NAMES
@pytest.mark.parametrize('as_list', [False, True])
def test_pretrained(codebase, name, as_list, tmp_path):
    """The file's weights where it has them, the plugin's own elsewhere."""
    full = randomise(build(codebase, name, plugins=[psa(), context()]))
    keys = full.state_dict()
    partly = {k: v for k, v in keys.items() if 'psa' not in k}
    for held, file in ((True, keys), (False, partly)):
        path = str(tmp_path / f'{held}.pth')
        torch.save(dict(state_dict=file), path)
        init_cfg = dict(type='Pretrained', checkpoint=path)
        if as_list:
            init_cfg = [
                dict(type='Normal', std=5, layer='Conv2d'),
                init_cfg,
            ]
        backbone = build(
            codebase, name, plugins=[psa(), context()], init_cfg=init_cfg
        )
        backbone.init_weights()
        for key, value in backbone.state_dict().items():
            if key in file and 'norm' not in key and 'bn' not in key:
                assert torch.equal(value, file[key]), key
        if not held:
            assert_own_initialisation(backbone)


@BOTH
def test_initialised_within_a_model(codebase, tmp_path):
    """Also under a model whose own init_cfg touches every convolution."""

    class Model(BaseModule):
        def __init__(self, backbone, **kwargs):
            super().__init__(**kwargs)
            self.backbone = backbone
            self.head = nn.Conv2d(8, 1, 1)

    backbone = build(codebase, 'ResNet18', plugins=[psa(), context()])
    model = Model(
        backbone, init_cfg=dict(type='Constant', val=7, layer='Conv2d')
    )
    logger = MMLogger.get_instance(
        f'{codebase}-init', log_file=str(tmp_path / 'log')
    )
    model.init_weights()
    assert model.head.weight.eq(7).all()
    assert_own_initialisation(backbone)
    for block in plugins_of(backbone, 'ContextBlock'):
        assert not block.channel_add_conv[-1].weight.any()
    for handler in logger.handlers:
        handler.flush()
    said = (tmp_path / 'log').read_text().split('backbone.layer1.0.psa.ch_wv')
    assert 'plugin PolarizedSelfAttention itself' in said[1]


@BOTH
def test_inserted_before_initialisation(codebase):
    """Into upstream's own class, which knows of no plugins."""
    backbone = upstream(codebase, 'ResNet18')
    insert_plugins(backbone, [psa()])
    backbone.init_weights()
    assert_own_initialisation(backbone)


@BOTH
def test_inserted_after_initialisation(codebase):
    backbone = upstream(codebase, 'ResNet18')
    backbone.init_weights()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    insert_plugins(backbone, [psa()])
    assert_own_initialisation(backbone)
    after = backbone.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


@pytest.fixture
def messages():
    """What is logged, as (level, text)."""
    logger = MMLogger.get_current_instance()
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append((record.levelno, record.getMessage()))

    handler = Keep(logging.INFO)
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_says_what_was_inserted(messages):
    backbone = build('mmseg', 'ResNet18', plugins=[psa()])
    count = sum(
        p.numel() for k, p in backbone.named_parameters() if 'psa' in k
    )
    assert messages == [
        (
            logging.INFO,
            'plugins[0]: 8 × PSA after_conv1 in ResNet, stages all, '
            f'{count:,} parameters',
        )
    ]


@pytest.mark.parametrize(
    'plugin, warned',
    [
        (psa(), True),
        (psa(identity_init=True), False),
        (psa(layout='sequential', identity_init=True), False),
        (context(), False),
        (dict(psa(), stages=(False, True, True, True)), False),
    ],
)
@BOTH
def test_warns_of_frozen_plugins(codebase, plugin, warned, messages):
    build(codebase, 'ResNet18', plugins=[plugin], frozen_stages=1)
    warnings = [m for level, m in messages if level == logging.WARNING]
    assert len(warnings) == warned
    if warned:
        assert '2 of these plugins are in frozen modules' in warnings[0]
        assert 'layer1.0.psa' in warnings[0]


@MODELS.register_module()
class Strided(nn.Module):
    """A plugin with running statistics, for maps of 16×16 and more."""

    def __init__(self, in_channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.pool = nn.AvgPool2d(16)

    def forward(self, x):
        return self.norm(x) + self.pool(x).mean((2, 3), keepdim=True)


def test_loading_a_baseline_changes_no_plugin(messages):
    plugins = [dict(cfg=dict(type='Strided'), position='output')]
    backbone = build('mmpose', 'ResNet18', plugins=plugins)
    backbone.load_state_dict(
        upstream('mmpose', 'ResNet18').state_dict(), strict=False
    )
    assert 'has no weights for' in messages[-1][1]
    assert messages[-1][0] == logging.WARNING  # no identity
    for norm in plugins_of(backbone, 'Strided'):
        assert norm.norm.num_batches_tracked == 0


@BOTH
@pytest.mark.parametrize('variant', ['paper', 'official'])
def test_names_a_psa_checkpoint_loaded_without_psa(
    codebase, variant, messages
):
    trained = build(codebase, 'HRNet', plugins=[psa(variant=variant)])
    plain = build(codebase, 'HRNet')
    messages.clear()
    plain.load_state_dict(trained.state_dict(), strict=False)
    (warning,) = messages
    assert warning[0] == logging.WARNING
    assert 'weights for 10 places where this HRNet has none' in warning[1]
    assert 'layer1.0.psa' in warning[1]

    messages.clear()
    trained.load_state_dict(trained.state_dict())
    plain.load_state_dict(plain.state_dict())
    assert not messages
