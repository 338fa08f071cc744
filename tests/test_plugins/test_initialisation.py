"""Weights of plugins after init_weights: the values, not the calls."""

import logging

import pytest
import torch
from helpers import build, images, randomise, upstream
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from mmpsa import insert_plugins

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
    """PSA's Kaiming over the fan-in, which no backbone's init_cfg gives."""
    for block in plugins_of(backbone, 'PolarizedSelfAttention'):
        weight = torch.cat(
            [
                getattr(block, name).weight.flatten()
                for name in ('ch_wv', 'sp_wv', 'sp_wq')
            ]
        )
        std = (2 / block.in_channels) ** 0.5
        assert abs(weight.std() / std - 1) < 8 / len(weight) ** 0.5
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
    for block in plugins_of(backbone, 'Gain'):
        assert block.conv.weight.eq(0.25).all()


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
