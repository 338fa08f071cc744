"""Copies, saved parts, shards and dead models: each has its own plugins."""

import copy
import gc
import io
import pickle
import weakref
from importlib import import_module

import pytest
import torch
from helpers import BACKBONES, build, images, probes, randomise
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmpsa import declare_block, insert_plugins, pluggable


def probe(factor=1.5, **place):
    cfg = dict(type='Probe', factor=factor)
    if 'postfix' in place:
        cfg['postfix'] = place.pop('postfix')
    return dict(cfg=cfg, **place)


def size_of(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return buffer.tell()


def weights_of(module):
    return sum(
        t.numel() * t.element_size() for t in module.state_dict().values()
    )


@pytest.mark.parametrize(
    'place',
    [
        dict(position='after_conv1'),
        dict(position='after_conv2'),
        dict(modules='layer1.*.conv1'),
    ],
    ids=str,
)
def test_a_fused_copy_of_a_convolution_runs_the_plugin_once(place):
    """As torch.ao's fusion does it: a deep copy of the convolution."""
    backbone = randomise(build('mmpose', 'ResNet18', plugins=[probe(**place)]))
    backbone.eval()
    expected = backbone(images())[-1]
    block = backbone.layer1[0]
    block.conv2 = fuse_conv_bn_eval(block.conv2, block.bn2)
    block.bn2 = nn.Identity()
    for each in probes(backbone):
        each.calls = 0
    torch.testing.assert_close(
        backbone(images())[-1], expected, rtol=1e-4, atol=1e-4
    )
    assert {each.calls for each in probes(backbone)} == {1}
    assert not probes(block.conv2)


@pytest.mark.parametrize(
    'place, part',
    [
        (dict(position='after_conv1'), 'layer1.0.conv2'),
        (dict(modules='layer2'), 'layer2'),
        (dict(modules='layer4'), 'layer4'),
        (dict(position='after_conv1'), 'layer2'),
        (dict(position='after_stage'), 'layer2'),
        (dict(modules='layer2.0.bn1'), 'layer2.0.bn1'),
    ],
    ids=str,
)
def test_a_part_copied_or_saved_alone(place, part):
    """It has the plugins inside it, and none of its surroundings."""
    backbone = randomise(build('mmpose', 'ResNet18', plugins=[probe(**place)]))
    backbone.eval()
    backbone(images())
    module = backbone.get_submodule(part)
    inside = probes(module)
    widths = {'layer1': 8, 'layer2': 8, 'layer4': 32, 'layer2.0.bn1': 16}
    x = torch.rand(2, widths.get(part, widths[part[:6]]), 8, 8)
    plain = build('mmpose', 'ResNet18')
    plain.load_state_dict(backbone.state_dict(), strict=False)
    plain.eval()
    for alone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert len(probes(alone)) == len(inside)
        if inside:
            torch.testing.assert_close(alone(x), module(x))
        else:
            theirs = plain.get_submodule(part)
            torch.testing.assert_close(alone(x), theirs(x))
    assert size_of(module) < 1.5 * weights_of(module) + 1e5


def test_wrapped_after_it_was_copied():
    """The copy's hook moves to the wrapper, too."""

    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    backbone = build(
        'mmpose', 'ResNet18', plugins=[probe(position='after_conv1')]
    )
    for copied in (
        copy.deepcopy(backbone),
        pickle.loads(pickle.dumps(backbone)),
    ):
        block = copied.layer1[0]
        block.conv2 = Wrapper(block.conv2)
        copied(images())
        assert {each.calls for each in probes(copied)} == {1}


def test_keyword_arguments_reach_the_plugin():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, 1)
            self.conv2 = nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.conv2(input=self.conv1(x))

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(Block())

        def forward(self, x):
            return self.layer1(x)

    declare_block(Block, after_conv1='conv1', after_3x3=_input('conv2'))
    for position in ('after_conv1', 'after_3x3'):
        backbone = Backbone()
        insert_plugins(backbone, [probe(2.0, position=position)])
        x = images()
        block = backbone.layer1[0]
        expected = block.conv2(2 * block.conv1(x))
        # by itself, the second convolution has the hook too
        (plugin,) = probes(backbone)
        plugin.calls = 0
        torch.testing.assert_close(
            backbone(x),
            nn.functional.conv2d(
                2
                * block.conv1._conv_forward(
                    x, block.conv1.weight, block.conv1.bias
                ),
                block.conv2.weight,
                block.conv2.bias,
            ),
        )
        assert plugin.calls == 1
        del expected


def _input(name):
    import mmpsa

    return mmpsa.input_of(name)


def test_a_module_that_is_gone_is_named():
    backbone = build(
        'mmpose', 'ResNet18', plugins=[probe(modules='layer1.0.bn1')]
    )
    del backbone.layer1[0].bn1
    with pytest.raises(
        RuntimeError, match='layer1.0.bn1 is gone, but the plugin after_modul'
    ):
        backbone(images())


@pytest.mark.skipif(
    not hasattr(torch.distributed, 'fsdp')
    or not hasattr(import_module('torch.distributed.fsdp'), 'fully_shard'),
    reason='this torch has no fully_shard',
)
@pytest.mark.parametrize(
    'place',
    [
        dict(position='after_3x3'),
        dict(position='after_conv2'),
        dict(position='after_stage'),
        dict(position='output'),
        dict(modules=['layer1.0', 'layer2.*.bn1']),
    ],
    ids=str,
)
def test_sharded_by_block(place, tmp_path):
    """Who owns a plugin is running, and has its weights, when it runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    backbone = build('mmpose', 'ResNet18', plugins=[probe(**place)])
    expected = backbone(images())[-1].detach()
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh('cpu', (1,))
        for layer in backbone.res_layers:
            for block in getattr(backbone, layer):
                fully_shard(block, mesh=mesh)
        fully_shard(backbone, mesh=mesh)
        output = backbone(images())[-1]
        output.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(output, expected)
    assert all(each.calls == 2 for each in probes(backbone))


@pluggable
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))


def resnet(**place):
    def make():
        return build(
            'mmpose', 'ResNet18', plugins=[probe(**each) for each in places]
        )

    places = place.pop('places', [place])
    return make


def of_registry(scope, **cfg):
    def make():
        registry = import_module(f'{scope}.registry').MODELS
        return registry.build(dict(cfg, _scope_=scope))

    return make


@pytest.mark.parametrize(
    'make, x',
    [
        (resnet(position='after_3x3'), images()),
        (resnet(position='after_conv2'), images()),
        (
            resnet(
                places=[
                    dict(position='after_stage'),
                    dict(position='output', postfix='_o'),
                ]
            ),
            images(),
        ),
        (resnet(modules=['layer1', 'layer1.*', 'layer2.0.bn1']), images()),
        (
            of_registry(
                'mmseg',
                type='FPN',
                in_channels=[8, 16],
                out_channels=8,
                num_outs=2,
                plugins=[probe(modules='fpn_convs.*')],
            ),
            [torch.rand(2, 8, 8, 8), torch.rand(2, 16, 4, 4)],
        ),
        (
            of_registry(
                'mmseg',
                type='FCNHead',
                in_channels=8,
                channels=8,
                num_classes=3,
                norm_cfg=dict(type='BN'),
                plugins=[probe(modules='convs.*')],
            ),
            [torch.rand(2, 8, 8, 8)],
        ),
        (lambda: Own(plugins=[probe(modules='*')]), images()),
        (
            lambda: Own(
                plugins=[dict(probe(modules='conv'), identity_init=True)]
            ),
            images(),
        ),
    ],
    ids=['block', 'norm', 'maps', 'modules', 'neck', 'head', 'own', 'γ'],
)
def test_a_dead_model_is_freed_at_once(make, x):
    """Without the garbage collector, as upstream's are."""
    make()  # the first one imports its codebase, which keeps frames alive
    gc.collect()
    gc.disable()
    try:
        for copied in (lambda m: m, copy.deepcopy):
            model = copied(make())
            model.init_weights()
            output = model(x)
            while isinstance(output, (list, tuple)):
                output = output[-1]
            output.sum().backward()
            model.load_state_dict(model.state_dict())
            parameters = [weakref.ref(p) for p in model.parameters()]
            del model, output
            assert not [ref for ref in parameters if ref() is not None]
    finally:
        gc.enable()


@pytest.fixture
def in_double():
    """In float32, how far rounding goes depends on the processor."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    'name', ['MobileOne', 'RepLKNet', 'RepMLPNet', 'RepVGG', 'RIFormer']
)
def test_reparameterised_with_the_pattern_that_we_name(name, in_double):
    pytest.importorskip('mmpretrain')
    from mmpsa.plugins.stages import MODULES_INSTEAD

    pattern = MODULES_INSTEAD[BACKBONES['mmpretrain'][name]['type']]
    backbone = randomise(
        build('mmpretrain', name, plugins=[probe(1.1, modules=pattern)])
    )
    backbone.eval()
    expected = backbone(images())[-1]
    backbone.switch_to_deploy()
    found = backbone(images())[-1]
    assert found.dtype == torch.float64
    assert (found - expected).norm() < 1e-9 * expected.norm()
    assert {each.calls for each in probes(backbone)} == {2}


def test_an_old_place_of_a_plugin_loads():
    """After a stage that ends with a single layer, a plugin was inside it."""
    pytest.importorskip('mmpretrain')
    entry = probe(position='after_stage')
    backbone = randomise(build('mmpretrain', 'ConvMixer', plugins=[entry]))
    old = {
        key.replace(
            'after_module.stages.0.', 'stages.0.0.after_stage.0.'
        ).replace('after_module.stages.1.', 'stages.1.0.after_stage.0.'): value
        for key, value in backbone.state_dict().items()
    }
    assert 'stages.0.0.after_stage.0.probe.weight' in old
    again = build('mmpretrain', 'ConvMixer', plugins=[entry])
    again.load_state_dict(old)
    for a, b in zip(again.parameters(), backbone.parameters()):
        assert torch.equal(a, b)


def test_another_forward_set_after_insertion():
    """As mmpose's switch_to_deploy does it."""
    block = import_module('mmpose.models.utils.reparam_layers').RepVGGBlock
    net = nn.Sequential(nn.Sequential(block(3, 3)))
    insert_plugins(net[0], [probe(modules='0')])
    randomise(net).eval()
    x = images()
    expected = net(x)
    net[0][0].switch_to_deploy()
    for model in (net, copy.deepcopy(net)):
        (plugin,) = probes(model)
        plugin.calls = 0
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        assert plugin.calls == 1


def test_copies_where_blocks_run_by_another_method():
    """A recursive feature pyramid runs blocks by their ``rfp_forward``."""
    backbone = build(
        'mmdet',
        'DetectoRS_ResNet50',
        rfp_inplanes=16,
        plugins=[probe(position='after_conv2')],
    )
    randomise(backbone).eval()
    x, features = images(), [None] + 4 * [torch.rand(1, 16, 1, 1)]
    expected = backbone.rfp_forward(x, features)
    for other in (
        copy.deepcopy(backbone),
        pickle.loads(pickle.dumps(backbone)),
    ):
        for each in probes(other):
            each.calls = 0
        for a, b in zip(other.rfp_forward(x, features), expected):
            assert torch.equal(a, b)
        assert {each.calls for each in probes(other)} == {1}
