"""Any plugin from the identity: ``identity_init=True`` in an entry."""

import copy
import pickle
from itertools import chain

import pytest
import torch
from helpers import build, images, randomise, upstream
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import nn

from mmpsa import insert_plugins
from mmpsa.plugins.identity import is_identity


@MODELS.register_module()
class Tripled(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.weight = nn.Parameter(torch.full((in_channels, 1, 1), 3.0))

    def forward(self, x):
        return x * self.weight


@MODELS.register_module()
class InPlace(Tripled):
    def forward(self, x):
        return x.mul_(3)


@MODELS.register_module()
class Noisy(Tripled):
    """Changes its input while it is trained, and nothing later."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.9, self.training)


@MODELS.register_module()
class OneSize(Tripled):
    """The identity on maps of 8×8, an error on others."""

    def forward(self, x):
        assert x.shape[2:] == (8, 8)
        return x


@MODELS.register_module()
class Mask(Tripled):
    """What a plugin must not return; it would be broadcast."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


@MODELS.register_module()
class SelfMade(Tripled):
    """Takes ``identity_init`` itself."""

    def __init__(self, in_channels, identity_init=False):
        super().__init__(in_channels)
        if identity_init:
            nn.init.ones_(self.weight)


def entry(kind, position='after_3x3', **kwargs):
    return dict(
        cfg=dict(type=kind, **kwargs), position=position, identity_init=True
    )


def plugins_of(module, name):
    return {
        path: plugin
        for path, plugin in module.named_modules()
        if path.endswith(f'.{name}')
    }


@pytest.mark.parametrize(
    'kind, name',
    [
        ('Tripled', 'tripled'),
        ('InPlace', 'in_place'),
        ('Noisy', 'noisy'),
        ('SelfMade', 'self_made'),
        ('PSA', 'psa'),
        ('timm_cbam', 'cbam'),
    ],
)
@pytest.mark.parametrize(
    'codebase, backbone', [('mmpose', 'HRNet'), ('mmdet', 'Res2Net50')]
)
def test_fine_tuning_starts_at_the_checkpoint(codebase, backbone, kind, name):
    """Bit for bit, in both modes; and it is trained from there."""
    theirs = randomise(upstream(codebase, backbone))
    positions = ['after_3x3', 'after_stage', 'output']
    if codebase == 'mmdet':
        positions += ['after_conv1']  # upstream's own code runs it
    postfixes = [dict(postfix=f'_{p}') for p in positions]
    ours = build(
        codebase,
        backbone,
        plugins=[
            entry(kind, p, **more) for p, more in zip(positions, postfixes)
        ],
    )
    ours.load_state_dict(theirs.state_dict(), strict=False)
    for training in (False, True):
        ours.train(training), theirs.train(training)
        torch.manual_seed(0)
        expected = theirs(images())
        torch.manual_seed(0)
        for a, b in zip(ours(images()), expected):
            assert torch.equal(a, b)
    sum(y.square().mean() for y in ours(images())).backward()
    for p in positions:
        for path, plugin in plugins_of(ours, f'{name}_{p}').items():
            assert any(
                q.grad is not None and q.grad.any()
                for q in plugin.parameters()
            ), path


def test_what_it_computes_and_its_keys():
    root = nn.Sequential(nn.Conv2d(3, 8, 1))
    root = nn.Module()
    root.conv = nn.Conv2d(3, 8, 1)
    root.forward = root.conv.forward
    insert_plugins(
        root,
        [dict(cfg=dict(type='InPlace'), modules='conv', identity_init=True)],
    )
    plugin = root.after_module.conv.in_place
    assert [*plugin.state_dict()] == ['weight', 'identity_gamma']
    assert isinstance(plugin, InPlace)
    x = torch.rand(2, 8, 5, 5)
    nn.init.constant_(plugin.identity_gamma, 0.25)
    for each in (
        plugin,
        copy.deepcopy(plugin),
        pickle.loads(pickle.dumps(plugin)),
        torch.compile(plugin, backend='eager', fullgraph=True),
        torch.export.export(plugin, (x,)).module(),
        torch.jit.trace(plugin, x),
    ):
        torch.testing.assert_close(each(x.clone()), 1.5 * x)
    copied = copy.deepcopy(plugin)
    nn.init.zeros_(copied.identity_gamma)
    assert plugin.identity_gamma == 0.25
    half = copy.deepcopy(plugin).half()
    assert half(x.half()).dtype == torch.float16
    with torch.autocast('cpu', torch.bfloat16):
        assert plugin(x).dtype == torch.float32


@pytest.fixture
def log():
    lines = []
    logger = MMLogger.get_current_instance()

    class Keep(type(logger.handlers[0])):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Keep()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def net(kind, **more):
    return build('mmpose', 'ResNet18', plugins=[dict(entry(kind), **more)])


def test_weights_that_were_trained_without_it(log):
    trained = randomise(net('Tripled', identity_init=False))
    trained.eval()
    ours = net('Tripled')
    log.clear()
    ours.load_state_dict(trained.state_dict())
    assert len(log) == 8
    assert 'layer1.0.tripled: the state dict has its weights but no' in log[0]
    ours.eval()
    for a, b in zip(ours(images()), trained(images())):
        torch.testing.assert_close(a, b)
    # its own keep their γ, and a baseline's leave it at 0
    log.clear()
    again = net('Tripled')
    again.load_state_dict(ours.state_dict())
    assert again.layer1[0].tripled.identity_gamma == 1
    fresh = net('Tripled')
    baseline = upstream('mmpose', 'ResNet18').state_dict()
    log.clear()
    fresh.load_state_dict(baseline, strict=False)
    assert fresh.layer1[0].tripled.identity_gamma == 0
    (line,) = log
    assert 'as the identity' in line


@pytest.mark.parametrize(
    'kind, kwargs, name',
    [
        ('ContextBlock', dict(ratio=0.5), 'context_block'),
        ('NonLocal2d', {}, 'nonlocal_block'),
    ],
)
def test_what_is_the_identity_stays_as_it_is(kind, kwargs, name):
    for identity_init in (True, False):
        backbone = build(
            'mmpose',
            'ResNet18',
            plugins=[dict(entry(kind, **kwargs), identity_init=identity_init)],
        )
        plugin = backbone.layer1[0].get_submodule(name)
        assert not hasattr(plugin, 'identity_gamma')
        assert is_identity(plugin, 8)


@pytest.mark.parametrize('kind', ['InPlace', 'Noisy', 'OneSize', 'Mask'])
def test_the_identity_is_not_claimed(kind):
    """What works in place, only in one mode, only at one size, or fails."""
    assert not is_identity(MODELS.build(dict(type=kind, in_channels=8)), 8)


def test_a_forward_chosen_in_the_constructor():
    @MODELS.register_module(force=True)
    class Chooser(Tripled):
        def __init__(self, in_channels):
            super().__init__(in_channels)
            self.forward = self.chosen

        def chosen(self, x):
            return x * self.weight

    backbone, x = net('Chooser'), images()
    expected = build('mmpose', 'ResNet18')
    expected.load_state_dict(backbone.state_dict(), strict=False)
    for each in (backbone, expected):
        each.eval()
    for a, b in zip(backbone(x), expected(x)):
        assert torch.equal(a, b)
    backbone(x)[-1].sum().backward()
    assert backbone.layer1[0].chooser.identity_gamma.grad is not None


def test_without_numbers():
    with torch.device('meta'):
        backbone = net('Tripled')
    assert backbone.layer1[0].tripled.identity_gamma.is_meta
    state = build('mmpose', 'ResNet18').state_dict()
    backbone.load_state_dict(state, strict=False, assign=True)


def test_a_trial_leaves_no_trace():
    plugin = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout())
    state = torch.get_rng_state()
    assert not is_identity(plugin, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert plugin[0].num_batches_tracked == 0
    assert all(m.training for m in plugin.modules())


@pytest.mark.parametrize(
    'plugin, message',
    [
        (
            dict(entry('Tripled'), identity_init=1),
            r"plugins\[0\]\['identity_init'\] must be a bool, got 1",
        ),
        (
            entry('PSA', identity_init=False),
            r'plugins\[0\] has identity_init=True, and cfg has '
            'identity_init=False; drop one',
        ),
        (
            dict(entry('PSA', identity_init=True), identity_init=False),
            r'plugins\[0\] has identity_init=False, and cfg has '
            'identity_init=True; drop one',
        ),
        (
            entry('PSA', variant='official'),
            "identity_init needs variant='paper'",
        ),
    ],
)
def test_refused(plugin, message):
    with pytest.raises(ValueError, match=message):
        build('mmpose', 'ResNet18', plugins=[plugin])


def test_a_plugin_that_changes_the_shape_is_named():
    backbone = net('Mask')
    with pytest.raises(
        ValueError,
        match='the plugin layer1.0.mask in ResNet .Mask. returns a tensor of '
        r'shape \(2, 8, 1, 1\) for .*keep the shape',
    ):
        backbone(images())


def test_frozen_and_saved_with_its_plugin():
    backbone = build(
        'mmpose', 'ResNet18', plugins=[entry('Tripled')], frozen_stages=1
    )
    frozen, free = backbone.layer1[0].tripled, backbone.layer2[0].tripled
    assert not frozen.identity_gamma.requires_grad
    assert free.identity_gamma.requires_grad
    gammas = [k for k in backbone.state_dict() if 'gamma' in k]
    assert len(gammas) == 8
    assert all('tripled.identity_gamma' in key for key in gammas)
    assert {id(p) for p in backbone.parameters()} >= {
        id(p) for p in chain(frozen.parameters(), free.parameters())
    }
