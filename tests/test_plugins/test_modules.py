"""``modules=``: plugins on the output of modules that a pattern names."""

import copy
import io
import logging
import pickle

import pytest
import torch
from helpers import Probe, build, images, probes, randomise, upstream
from mmcv.cnn import fuse_conv_bn
from mmengine.logging import MMLogger
from mmengine.model import (
    BaseModule,
    ExponentialMovingAverage,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.registry import MODELS
from torch import nn

import mmpsa
from mmpsa import insert_plugins


def probe(modules, factor=2.0, **cfg):
    return dict(cfg=dict(type='Probe', factor=factor, **cfg), modules=modules)


def run(module, x):
    """Every probe must run once."""
    for p in probes(module):
        p.calls = 0
    out = module(x)
    assert {p.calls for p in probes(module)} == {1}
    return out


def doubled(module, names):
    """The same module, its plugins written as hooks."""
    module = copy.deepcopy(module)
    for name in names:
        module.get_submodule(name).register_forward_hook(
            lambda module, args, output: 2 * output
        )
    return module


# A pattern, and the keys of the plugins by what they follow.
PLACES = {
    # blocks have a forward of their own
    'layer1.*': {f'layer1.{i}': f'layer1.{i}.probe' for i in range(2)},
    'layer[34].0': {f'layer{i}.0': f'layer{i}.0.probe' for i in (3, 4)},
    # layers may be replaced: a child of the block
    'layer2.?.bn2': {
        f'layer2.{i}.bn2': f'layer2.{i}.after_module.bn2.probe'
        for i in range(2)
    },
    # a container would run it: a child of the backbone
    'layer3': {'layer3': 'after_module.layer3.probe'},
    'conv1': {'conv1': 'after_module.conv1.probe'},
    '**.downsample.1': {
        f'layer{i}.0.downsample.1': (
            f'layer{i}.0.after_module.downsample.1.probe'
        )
        for i in (2, 3, 4)
    },
    'layer4.**.conv1': {
        f'layer4.{i}.conv1': f'layer4.{i}.after_module.conv1.probe'
        for i in range(2)
    },
    ('maxpool', 'layer1', 'maxpool*'): {
        'maxpool': 'after_module.maxpool.probe',
        'layer1': 'after_module.layer1.probe',
    },
}


@pytest.mark.parametrize('modules', PLACES, ids=str)
def test_where_plugins_run(modules):
    """As a hook on the module would; nothing else is moved."""
    plain = randomise(upstream('mmpose', 'ResNet18'))
    plain.eval()
    places = PLACES[modules]
    backbone = copy.deepcopy(plain)
    assert insert_plugins(backbone, [probe(modules)]) == [*places.values()]
    found = dict(backbone.named_modules())
    assert [type(found[name]) for name in places.values()] == (
        [Probe] * len(places)
    )
    x = images()
    expected = doubled(plain, places)(x)
    for a, b in zip(run(backbone, x), expected):
        assert torch.equal(a, b)
    built = build('mmpose', 'ResNet18', plugins=[probe(modules)])
    built.eval()
    assert list(built.state_dict()) == list(backbone.state_dict())
    built.load_state_dict(backbone.state_dict())
    for a, b in zip(run(built, x), expected):
        assert torch.equal(a, b)


def test_plugins_of_one_module_run_in_order():
    """And in patterns plugins are not seen."""
    backbone = build('mmpose', 'ResNet18')
    first = probe('layer1.0')
    second = probe(['layer1.0', 'layer1.0.bn1'], 3.0, postfix='_b')
    insert_plugins(backbone, [first])
    names = insert_plugins(backbone, [second])
    assert names == ['layer1.0.probe_b', 'layer1.0.after_module.bn1.probe_b']
    order = []
    for name in ('probe', 'probe_b'):
        getattr(backbone.layer1[0], name).register_forward_hook(
            lambda module, *_, name=name: order.append(name)
        )
    run(backbone, images())
    assert order == ['probe', 'probe_b']
    with pytest.raises(ValueError, match="'layer1.0.pr.*' matches no module"):
        insert_plugins(backbone, [probe('layer1.0.pr*')])
    with pytest.raises(ValueError, match="'probe' is taken in layer1.0"):
        insert_plugins(backbone, [first])
    every = insert_plugins(backbone, [probe('**', postfix='_c')])
    assert not [n for n in every if '.probe' in n.rpartition('.')[0]]


MODULES = ['layer1', 'layer[12].*', 'layer*.?.bn?', 'relu', 'layer3.*.relu']


@pytest.mark.parametrize('codebase', ['mmpose', 'mmseg'])
def test_plugins_survive_what_runners_do(codebase):
    # a block's relu runs twice in it, and its plugin with it
    plugins = [probe(MODULES[:-1], 1.5)]
    backbone = randomise(build(codebase, 'ResNet18', plugins=plugins))
    backbone.eval()
    x = images()
    expected = run(backbone, x)
    buffer = io.BytesIO()
    torch.save(backbone, buffer)
    buffer.seek(0)
    synced = convert_sync_batchnorm(copy.deepcopy(backbone))
    for again in (
        copy.deepcopy(backbone),
        pickle.loads(pickle.dumps(backbone)),
        torch.load(buffer, weights_only=False),
        ExponentialMovingAverage(backbone).module,
        synced,
        revert_sync_batchnorm(copy.deepcopy(synced)),
        fuse_conv_bn(copy.deepcopy(backbone)),
    ):
        again.eval()
        for a, b in zip(run(again, x), expected):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert not {*map(id, probes(again))} & {*map(id, probes(backbone))}
        for p in probes(again):
            nn.init.zeros_(p.weight)
        assert not again(x)[-1].equal(expected[-1])
    for a, b in zip(run(backbone, x), expected):
        assert torch.equal(a, b)
    traced = torch.jit.trace(backbone, x, check_trace=False)(x)
    for a, b in zip(traced, expected):
        torch.testing.assert_close(a, b)


class NormAct(nn.BatchNorm2d):
    """As timm's: a norm with a child."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_a_norm_with_children_may_be_replaced_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.norm = NormAct(4)

        def forward(self, x):
            return self.norm(self.conv(x))

    block = Block()
    names = insert_plugins(block, [probe('norm')])
    assert names == ['after_module.norm.probe']
    run(fuse_conv_bn(block.eval()), images())


def test_fusion_past_a_plugin_is_an_error():
    """Between a convolution and its norm: fused, they would be one."""
    backbone = build('mmpose', 'ResNet18', plugins=[probe('layer1.0.conv2')])
    run(backbone, images())
    fused = fuse_conv_bn(copy.deepcopy(backbone))
    fused.eval()
    message = r'layer1.0.conv2 has been fused .* plugin after_module.conv2.pr'
    with pytest.raises(RuntimeError, match=message):
        fused(images())


@pytest.mark.parametrize(
    'entry',
    [
        dict(cfg=dict(type='Probe'), position='after_conv1'),
        dict(cfg=dict(type='Probe'), position='after_conv2'),
        probe('layer1.*.conv2', 1.0),
        probe('layer1.*', 1.0),
    ],
)
def test_a_wrapped_module_runs_its_plugin_once(entry):
    """Wrappers (checkpointing, LoRA) hold a module that has the hook."""

    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    backbone = build('mmpose', 'ResNet18', plugins=[entry])
    run(backbone, images())
    block = backbone.layer1[0]
    block.conv2 = Wrapper(block.conv2)
    run(backbone, images())


@pytest.mark.parametrize(
    'position', ['after_conv1', 'after_conv2', 'after_stage']
)
def test_torch_fx_is_refused(position):
    """It traces past plugins. mmengine's efficient_conv_bn_eval uses it."""
    plugins = [dict(cfg=dict(type='Probe'), position=position)]
    backbone = build('mmpose', 'ResNet18', plugins=plugins)
    with pytest.raises(RuntimeError, match='torch.fx traces past plugins'):
        torch.fx.symbolic_trace(backbone)


def test_compiles_before_its_first_run():
    modules = ['layer1.*.conv2', 'layer2']
    plugins = [probe(modules)]
    for position in ('after_conv1', 'after_conv2', 'after_stage'):
        cfg = dict(type='Probe', postfix=f'_{position}')
        plugins.append(dict(cfg=cfg, position=position))
    backbone = build('mmpose', 'ResNet18', plugins=plugins)
    backbone.eval()
    compiled = torch.compile(backbone, backend='eager', fullgraph=True)
    for a, b in zip(compiled(images()), backbone(images())):
        assert torch.equal(a, b)


def test_a_forward_chosen_in_the_constructor_runs():
    class Chooser(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.forward = self.forward_here

        def forward_here(self, x):
            return self.conv(x)

    x = images()
    for modules, path in (('conv', 'after_module.conv'), ('b', 'b')):
        module = nn.ModuleDict(dict(b=Chooser())) if path == 'b' else Chooser()
        host = module['b'] if path == 'b' else module
        expected = host(x)
        (name,) = insert_plugins(module, [probe(modules, 2.0, in_channels=4)])
        assert torch.equal(host(x), 2 * expected), name


def test_other_arguments_of_a_module_stay():
    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_channels = 3

        def forward(self, x, factor, bias=0):
            return x * factor + bias

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = Mix()

        def forward(self, x):
            return self.mix(x, 3, bias=1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(Block())

        def forward(self, x):
            return self.layer1(x)

    mmpsa.declare_block(Block, after_conv1=mmpsa.input_of('mix'))
    net, x = Net(), images()
    entry = dict(cfg=dict(type='Probe', factor=2.0), position='after_conv1')
    insert_plugins(net, [entry])
    assert torch.equal(run(net, x), 2 * x * 3 + 1)


def test_frozen_where_the_module_is():
    modules = ['layer1', 'layer1.0', 'layer[12].1.bn1', 'layer2.*.relu']
    backbone = build(
        'mmpose',
        'ResNet18',
        plugins=[probe(modules)],
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False),
    )
    for _ in range(2):
        backbone(images())
        for name, module in backbone.named_modules():
            if isinstance(module, Probe):
                frozen = 'layer1' in name
                assert module.weight.requires_grad != frozen, name
                assert module.training != frozen, name
        backbone.train()


@pytest.mark.parametrize('codebase', ['mmpose', 'mmseg'])
def test_own_initialisation(codebase, tmp_path):
    """From scratch their own, from a file what it has."""
    modules = ['layer1', 'layer2.*', 'layer3.0.bn1']
    plugins = [dict(cfg=dict(type='PSA', identity_init=True), modules=modules)]
    scratch = build(codebase, 'ResNet18', plugins=plugins)
    scratch.init_weights()
    blocks = [m for m in scratch.modules() if isinstance(m, mmpsa.PSA)]
    assert len(blocks) == 4
    for block in blocks:
        weight = torch.cat([block.ch_wv.weight, block.sp_wq.weight])
        assert abs(weight.std() / 0.001 - 1) < 8 / weight.numel() ** 0.5
        assert not block.sp_wv.weight.any()
    baseline = randomise(upstream(codebase, 'ResNet18'))
    for saved in (baseline, randomise(scratch)):
        torch.save(saved.state_dict(), tmp_path / 'saved.pth')
        init_cfg = dict(
            type='Pretrained', checkpoint=str(tmp_path / 'saved.pth')
        )
        backbone = build(
            codebase, 'ResNet18', plugins=plugins, init_cfg=init_cfg
        )
        backbone.init_weights()
        x = images()
        backbone.eval(), saved.eval()
        for a, b in zip(backbone(x), saved(x)):
            assert torch.equal(a, b)


def retina_head(**kwargs):
    from mmdet.registry import MODELS as registry

    return registry.build(
        dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            _scope_='mmdet',
            **kwargs,
        )
    )


def test_a_module_called_several_times_shares_its_plugin():
    """RetinaHead's convolutions run on each level."""
    head = retina_head(plugins=[probe('cls_convs.0')])
    (plugin,) = probes(head)
    head([torch.rand(1, 8, size, size) for size in (8, 4, 2)])
    assert plugin.calls == 3


def test_a_module_with_several_names_gets_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.second = self.first

        def forward(self, x):
            return self.second(x)

    for modules in ('*', 'first', 'second', ['second', 'first']):
        module = Twice()
        (name,) = insert_plugins(module, [probe(modules)])
        module(images())
        assert module.get_submodule(name).calls == 1


class Neck(BaseModule):
    """What the width of its modules does not tell."""

    def __init__(self, returned='map'):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU()
        self.mix = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU())
        self.tokens = nn.Flatten(2)
        self.unused = nn.Conv2d(8, 8, 1)

    def forward(self, inputs):
        x = self.act(self.conv(inputs[0]))
        return self.mix(x), self.tokens(x)


class TestWidths:
    def test_found_by_running_a_backbone(self):
        names = ['relu', 'layer2', 'layer3.1', 'layer4.0.relu']
        backbone = build('mmseg', 'ResNet18')
        added = insert_plugins(backbone, [probe(names)])
        widths = [len(backbone.get_submodule(n).weight) for n in added]
        assert widths == [8, 16, 32, 64]

    def test_given(self):
        neck = Neck()
        insert_plugins(neck, [probe('mix', in_channels=16)])
        neck([torch.rand(1, 8, 4, 4)])
        assert [p.calls for p in probes(neck)] == [1]

    def test_asked_for(self):
        message = (
            r"plugins\[0\]\['modules'\]: the width of mix is not known: .*, "
            r"give its C: cfg=dict\(type='Probe', in_channels=64\)"
        )
        with pytest.raises(ValueError, match=message):
            insert_plugins(Neck(), [probe('mix')])
        with pytest.raises(ValueError, match='width of relu is not known'):
            retina_head(plugins=[probe('relu')])

    def test_contradicted(self):
        message = r"\['in_channels'\] is 4, but conv has out_channels=8"
        with pytest.raises(ValueError, match=message):
            insert_plugins(Neck(), [probe('conv', in_channels=4)])

    @pytest.mark.parametrize(
        'name, width, message',
        [
            (
                'mix',
                12,
                r'mix returns a tensor of shape \(1, 16, 4, 4\), but its '
                r'plugin after_module.mix.probe .* N×12×H×W maps; .* '
                r'cfg=dict\(in_channels=16\)',
            ),
            ('tokens', 8, r'tokens returns a tensor of shape \(1, 8, 16\)'),
        ],
    )
    def test_wrong_when_running(self, name, width, message):
        neck = Neck()
        insert_plugins(neck, [probe(name, in_channels=width)])
        with pytest.raises(ValueError, match=message):
            neck([torch.rand(1, 8, 4, 4)])

    def test_several_maps(self):
        backbone = build('mmpose', 'HRNet')
        message = r'stage3.0 returns 3 N×C×H×W maps, a plugin takes one'
        with pytest.raises(ValueError, match=message):
            insert_plugins(backbone, [probe('stage3.0')])


@pytest.mark.parametrize(
    'entry, error, message',
    [
        *(
            (probe(modules), TypeError, r"\['modules'\] must be a pattern")
            for modules in (None, 3, [], (), [None], ['relu', 1], {'relu': 1})
        ),
        *(
            (probe(modules), ValueError, r"has the malformed pattern '")
            for modules in ('', '.', 'layer1.', '.layer1', 'layer1..0')
            + ('layer[1', 'layer1]', 'layer[].0', ['relu', ''])
            + ('layer[!1].0', 'layer[^1].0', 'layer[3-1].0', 'layer[1-].0')
        ),
        *(
            (
                dict(probe('relu'), **{key: value}),
                ValueError,
                rf"plugins\[0\] has both 'modules' and '{key}'.*drop one",
            )
            for key, value in (
                ('position', 'after_conv1'),
                ('stages', (True,) * 4),
            )
        ),
        *(
            (
                probe('relu', in_channels=width),
                ValueError,
                r"\['in_channels'\] must be a positive int, got",
            )
            for width in (0, -8, 8.0, '8', None, True)
        ),
        (
            dict(modules='relu'),
            ValueError,
            r"plugins\[0\] lacks the key 'cfg'",
        ),
        (
            probe('layers.*'),
            ValueError,
            r"'layers.\*' matches no module of this ResNet; it has layer4.1",
        ),
        (
            probe(['relu', 'layer1.0.conv9']),
            ValueError,
            r"'layer1.0.conv9' matches no module .*layer1.0.conv1",
        ),
        # one star stays within a component
        (probe('*.conv1'), ValueError, r'matches no module'),
        (probe('layer1.conv1'), ValueError, r'matches no module'),
        (probe('lay.r1'), ValueError, r'matches no module'),
    ],
)
def test_refused(entry, error, message):
    """Nothing is inserted then."""
    backbone = build('mmpose', 'ResNet18')
    keys = list(backbone.state_dict())
    with pytest.raises(error, match=message):
        insert_plugins(backbone, [entry])
    assert list(backbone.state_dict()) == keys


def test_what_fuses_itself_in_evaluation_is_refused():
    from mmcv.cnn import ConvModule

    class Net(nn.Module):
        def __init__(self, fused):
            super().__init__()
            self.c = ConvModule(
                3,
                3,
                1,
                norm_cfg=dict(type='BN'),
                efficient_conv_bn_eval=fused,
            )

        def forward(self, x):
            return self.c(x)

    for name in ('c.conv', 'c.bn'):
        with pytest.raises(ValueError, match=f'{name} is fused in evaluation'):
            insert_plugins(Net(True), [probe(name)])
        insert_plugins(Net(False), [probe(name)])
    net = Net(True).eval()
    insert_plugins(net, [probe(['c', 'c.activate'], in_channels=3)])
    net(images())
    assert [p.calls for p in probes(net)] == [1, 1]


def test_the_entry_knows_the_width_better_than_a_block():
    """``out_channels`` of a ShuffleUnit is that of one of its branches."""
    backbone = build('mmpose', 'ShuffleNetV1')
    entry = probe('layers.0.0', in_channels=120)
    insert_plugins(backbone, [entry])
    backbone(images())
    assert [p.calls for p in probes(backbone)] == [1]


def test_a_module_replaced_later_loses_its_plugin_alone():
    backbone = build('mmpose', 'ResNet18', plugins=[probe('layer[12].*')])
    backbone.layer2 = nn.Identity()
    backbone.init_weights()
    backbone.load_state_dict(backbone.state_dict())
    assert len(probes(backbone)) == 2


def test_lists_are_never_called():
    with pytest.raises(ValueError, match=r"never called.*'cls_convs.\*'"):
        retina_head(plugins=[probe('cls_convs')])


def test_a_root_that_runs_its_children():
    root = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match='0 is only inside containers'):
        insert_plugins(root, [probe('0')])


@MODELS.register_module()
class Faulty(nn.Module):
    """A plugin with a mistake in its code."""

    def __init__(self, in_channels, when):
        super().__init__()
        self.when = when
        if when == 'built':
            self.weigth.fill_(1)

    def forward(self, x):
        return self.weigth * x


@pytest.mark.parametrize('position', ['after_conv1', 'output'])
def test_a_mistake_in_a_plugin_surfaces_as_it_is(position):
    backbone = build('mmseg', 'ResNet18')
    with pytest.raises(AttributeError, match='weigth'):
        cfg = dict(type='Faulty', when='built')
        insert_plugins(backbone, [dict(cfg=cfg, position=position)])
    cfg = dict(type='Faulty', when='run')
    insert_plugins(backbone, [dict(cfg=cfg, position='after_conv1')])
    with pytest.raises(AttributeError, match='weigth'):
        insert_plugins(backbone, [dict(probe('relu'))])


@pytest.fixture
def warnings():
    logger = MMLogger.get_current_instance()
    found = []

    class Keep(logging.Handler):
        def emit(self, record):
            if record.levelno == logging.WARNING:
                found.append(record.getMessage())

    handler = Keep()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_names_plugins_that_the_first_iteration_left_out(warnings):
    """Once, and whoever trains."""
    neck, other = Neck(), Neck()
    insert_plugins(neck, [probe(['conv', 'unused'])])
    insert_plugins(other, [probe('conv')])
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (neck, other)]
    for _ in range(2):
        for module, optimizer in zip((neck, other), optimizers):
            module([torch.rand(1, 8, 4, 4)])[0].sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    (warning,) = warnings
    assert '1 plugins of Neck took no part in the first training' in warning
    assert 'after_module.unused.probe. ' in warning


def test_a_frozen_teacher_is_not_waited_for(monkeypatch):
    """The hook of all optimizers goes after some steps."""
    from mmpsa.plugins import usage

    teacher, student = Neck(), Neck()
    insert_plugins(teacher, [probe('conv')])
    insert_plugins(student, [probe('conv')])
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(usage._PATIENCE):
        assert usage._handle is not None
        student([torch.rand(1, 8, 4, 4)])[0].sum().backward()
        optimizer.step()
    assert usage._handle is None and not usage._waiting


class TestPluggable:
    def test_a_class_of_ones_own(self):
        @mmpsa.pluggable
        class Own(BaseModule):
            def __init__(self, width):
                super().__init__()
                self.conv = nn.Conv2d(3, width, 1)

            def forward(self, x):
                return self.conv(x)

        plain, own = Own(4), Own(width=4, plugins=[probe('conv', 3.0)])
        assert isinstance(own, Own) and not probes(plain)
        assert type(own).__name__ == 'Own' and type(plain) is Own
        plain.conv.load_state_dict(own.conv.state_dict())
        x = images()
        torch.testing.assert_close(own(x), 3 * plain(x))
        entry = dict(cfg=dict(type='PSA'), position='output')
        there = Own(4, plugins=[entry]).get_submodule('output.0.psa')
        assert isinstance(there, mmpsa.PSA)
        # it keeps its initialisation
        psa = dict(cfg=dict(type='PSA'), modules='conv')
        own = Own(8, plugins=[psa])
        own.init_cfg = dict(type='Constant', val=7, layer='Conv2d')
        own.init_weights()
        assert own.conv.weight.eq(7).all()
        assert not own.after_module.conv.psa.ch_wv.weight.eq(7).any()

    def test_after_the_constructor_of_a_subclass(self):
        registered = []

        @mmpsa.pluggable
        class Base(nn.Module):
            def __init_subclass__(cls, **kwargs):
                super().__init_subclass__(**kwargs)
                registered.append(cls)

            def __init__(self):
                super(Base, self).__init__()
                self.conv = nn.Conv2d(3, 4, 1)

        class Derived(Base):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.last = nn.Conv2d(4, 5, 1)

            def forward(self, x):
                return self.last(self.conv(x))

        class Further(Derived):
            pass

        assert registered == [Derived, Further]
        for cls in (Derived, Further):
            module = cls(plugins=[probe('*')])
            run(module, images())
            assert len(probes(module)) == 2
            assert not probes(cls())

    def test_a_subclass_of_upstreams(self):
        from mmpsa.codebases.mmseg import FPN

        class Own(FPN):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.extra = nn.Conv2d(8, 8, 1)

        neck = Own([8], 8, num_outs=1, plugins=[probe('extra')])
        assert len(probes(neck)) == 1
