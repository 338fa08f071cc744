"""Every position of every backbone: the block's, the stage's, the output."""

import copy
import pickle
import re
from importlib.util import find_spec
from typing import NamedTuple

import pytest
import torch
from helpers import EVERY, build, images, probes, randomise, upstream
from mmengine.model import (
    BaseModule,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from mmengine.registry import MODELS
from torch import nn

from dev.small_backbones import BACKBONES
from mmpsa import declare_block, insert_plugins
from mmpsa.plugins.probing import find_widths
from mmpsa.plugins.sites import SiteFinder
from mmpsa.plugins.stages import MODULES_INSTEAD
from mmpsa.plugins.validation import POSITIONS

IN_BLOCKS = POSITIONS[:3]
FACTORS = dict(zip(IN_BLOCKS, (1.5, -0.5, 2.5)))


def probe(position, factor=1.1, **kwargs):
    cfg = dict(type='Probe', factor=factor, postfix=position)
    return dict(cfg=cfg, position=position, **kwargs)


def maps_of(output):
    if isinstance(output, (list, tuple)):
        return [x for part in output for x in maps_of(part)]
    return [output] if torch.is_tensor(output) and output.dim() == 4 else []


def evaluated(backbone):
    backbone.eval()  # which returns nothing in many of them
    return backbone


def takes(backbone):
    """An entry for each position, at every stage that has it."""
    entries = []
    for position in POSITIONS:
        stages = [
            bool(stage.sites)
            for stage in SiteFinder(backbone).find_by_stage(position)
        ]
        if any(stages):
            entries.append(probe(position, stages=stages))
    return entries


def run(backbone, x):
    """Every plugin must run."""
    for p in probes(backbone):
        p.calls = 0
    output = maps_of(backbone(x))
    assert all(p.calls for p in probes(backbone))
    return output


# They read no pictures, and nothing in them has the shape of a picture.
NOWHERE = ('DSTFormer', 'TCN', 'V2VNet')


def of_mmpretrain(*names):
    missing = pytest.mark.skipif(
        find_spec('mmpretrain') is None, reason='mmpretrain is not installed'
    )
    return [pytest.param('mmpretrain', name, marks=missing) for name in names]


MMPRETRAIN = of_mmpretrain(
    'ConvNeXt',
    'HRNet',
    'Res2Net50',
    'ResNet18',
    'ResNet50',
    'SEResNet50',
    'SwinTransformer',
    'VisionTransformer',
)
LIGHT_MMPRETRAIN = of_mmpretrain(
    'EfficientNetV2',
    'MobileNetV2',
    'MobileNetV3',
    'MobileViT',
    'ShuffleNetV1',
    'ShuffleNetV2',
)


@pytest.mark.parametrize(
    'codebase, name', [x for x in EVERY if x[1] not in NOWHERE] + MMPRETRAIN
)
def test_every_position_of_every_backbone(codebase, name):
    # TridentNet's weights have no values before that
    backbone = randomise(build(codebase, name))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    state = torch.get_rng_state()
    modes = [m.training for m in backbone.modules()]
    entries = takes(backbone)
    assert entries[-1]['position'] == 'output'
    # looking for places leaves no trace
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [m.training for m in backbone.modules()]
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())

    names = insert_plugins(backbone, entries)
    modules = dict(backbone.named_modules())
    assert {id(modules[n]) for n in names} == {*map(id, probes(backbone))}
    new = set(backbone.state_dict()) - set(before)
    assert new == {f'{n}.weight' for n in names}

    x = images()
    backbone.train()
    clone = copy.deepcopy(backbone)
    sum(y.double().mean() for y in run(backbone, x)).backward()
    for n in names:
        grad = modules[n].weight.grad
        assert grad is not None and grad.isfinite().all(), n
    run(clone, x)
    assert not {*map(id, probes(clone))} & {*map(id, probes(backbone))}

    backbone.eval()
    expected = run(backbone, x)
    fresh = build(codebase, name, plugins=entries)
    fresh.load_state_dict(backbone.state_dict())
    synced = convert_sync_batchnorm(pickle.loads(pickle.dumps(backbone)))
    for again in (fresh, revert_sync_batchnorm(synced)):
        for a, b in zip(run(evaluated(again), x), expected):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('codebase, name', EVERY + MMPRETRAIN)
def test_without_plugins_upstreams_own(codebase, name):
    """Same keys, same repr, same output bit for bit."""
    theirs = upstream(codebase, name)
    ours = randomise(build(codebase, name))
    assert type(ours) is not type(theirs)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    if name not in NOWHERE:
        for training in (True, False):
            results = []
            for backbone in (ours, theirs):
                backbone.train(training)
                torch.manual_seed(0)
                results.append(maps_of(backbone(images())))
            assert len(results[0]) == len(results[1]) > 0
            assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize('name', NOWHERE)
@pytest.mark.parametrize('position', POSITIONS)
def test_refused_where_there_are_no_maps(name, position):
    backbone = build('mmpose', name)
    with pytest.raises(ValueError, match=rf"\['position'\]: {name} takes no"):
        insert_plugins(backbone, [probe(position)])


def block_forward(block, x, plug):
    """What a block computes before the sum, when it has plugins in it."""
    kind = type(block).__name__
    if kind == 'RSB':
        out = plug(block.conv_bn_relu1(x), 'after_conv1')
        parts, rows = out.split(block.branch_channels, 1), []
        for i, part in enumerate(parts):
            row = []
            for j in range(i + 1):
                y = row[-1] if j else part
                if i > j:
                    y = y + rows[i - 1][j]
                name = f'conv_bn_relu2_{i + 1}_{j + 1}'
                row.append(getattr(block, name)(y))
            rows.append(row)
        out = plug(torch.cat([row[-1] for row in rows], 1), 'after_conv2')
        return plug(block.conv_bn3(out), 'after_conv3')
    if not hasattr(block, 'norm1'):  # of ConvModules
        out = plug(block.conv1(x), 'after_conv1')
        out = plug(block.conv2(out), 'after_conv2')
        if hasattr(block, 'conv3'):
            out = plug(block.conv3(out), 'after_conv3')
        return out
    out = plug(block.norm1(block.conv1(x)).relu(), 'after_conv1')
    if kind == 'Bottle2neck':
        first, *rest = out.split(block.width, 1)
        out = [block.bns[0](block.convs[0](first)).relu()]
        for conv, bn, part in zip(block.convs[1:], block.bns[1:], rest):
            part = part if block.stage_type == 'stage' else out[-1] + part
            out.append(bn(conv(part)).relu())
        last = rest[-1]
        if hasattr(block, 'pool'):
            last = block.pool(last)
        out = torch.cat([*out, last], 1)
    elif kind == 'TridentBottleneck':
        out = block.norm2(block.conv2([out])[0]).relu()
    else:
        out = block.conv2(out)
        if hasattr(block, 'norm2'):
            out = block.norm2(out)
            if not hasattr(block, 'conv3'):
                return plug(out, 'after_conv2')
            out = out.relu()
        elif block.avg_down_stride:
            out = block.avd_layer(out)
    out = plug(out, 'after_conv2')
    out = plug(block.norm3(block.conv3(out)), 'after_conv3')
    if getattr(block, 'attention', None):
        out = block.attention(out)
    return out


def add_residual(block, x, out):
    kind = type(block).__name__
    if getattr(block, 'downsample', None):
        x = block.downsample(x)
    if kind in ('CSPNeXtBlock', 'DarknetBottleneck'):
        return x + out if block.add_identity else out
    if kind == 'ResBlock':
        return x + out
    if hasattr(block, 'conv1') and not hasattr(block, 'norm1'):
        return block.act(x + out) if hasattr(block, 'act') else x + out
    return (x + out).relu()


@pytest.mark.parametrize(
    'codebase, name',
    [
        ('mmpose', 'CSPDarknet'),
        ('mmpose', 'CSPNeXt'),
        ('mmpose', 'HourglassNet'),
        ('mmpose', 'ResNeSt50'),
        ('mmpose', 'RSN'),
        ('mmpose', 'SEResNeXt50'),
        ('mmpose', 'ViPNAS_ResNet'),
        ('mmseg', 'DDRNet'),
        ('mmseg', 'ResNeSt50'),
        ('mmdet', 'CSPNeXt'),
        ('mmdet', 'Darknet'),
        ('mmdet', 'HRNet'),
        ('mmdet', 'Res2Net50'),
        ('mmdet', 'ResNeSt50'),
        ('mmdet', 'ResNet50'),
        ('mmdet', 'TridentResNet50'),
        *(x for x in MMPRETRAIN if 'Res' in x.values[1]),
    ],
)
def test_where_plugins_run_in_blocks(codebase, name):
    """Against each block's forward written out with plugins in it."""
    plain = evaluated(randomise(build(codebase, name)))
    backbone = copy.deepcopy(plain)
    entries = [e for e in takes(backbone) if e['position'] in IN_BLOCKS]
    for entry in entries:
        entry['cfg']['factor'] = FACTORS[entry['position']]
    insert_plugins(backbone, entries)
    bare = dict(plain.named_modules())
    tested = 0
    for path, block in backbone.named_modules():
        if not hasattr(block, 'probeafter_conv2'):
            continue
        # DDRNet's last blocks alone have three convolutions
        factors = {
            p: f for p, f in FACTORS.items() if hasattr(block, f'probe{p}')
        }
        convs = (m for m in block.modules() if isinstance(m, torch.nn.Conv2d))
        x = torch.rand(2, next(convs).in_channels, 8, 8)
        out = block_forward(
            bare[path], x, lambda x, p: x * factors.get(p, 1.0)
        )
        if hasattr(block, 'se_layer'):
            out = bare[path].se_layer(out)
        ours = block(x.clone())
        if isinstance(ours, list):  # TridentNet's branches
            (ours,) = ours
        expected = add_residual(bare[path], x, out)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        tested += 1
    assert tested >= 3


def light_forward(block, x, plug):
    """What a block of a mobile or light network computes with plugins."""
    kind = type(block).__name__
    if kind == 'ShuffleUnit' and hasattr(block, 'groups'):
        out = plug(block.g_conv_1x1_compress(x), 'after_conv1')
        out = plug(block.depthwise_conv3x3_bn(out), 'after_conv2')
        out = torch.nn.functional.channel_shuffle(out, block.groups)
        out = plug(block.g_conv_1x1_expand(out), 'after_conv3')
        if block.combine == 'add':
            return block.act(x + out)
        return torch.cat([block.avgpool(x), block.act(out)], 1)
    if hasattr(block, 'branch2'):
        kept, out = x.chunk(2, 1) if block.stride == 1 else (x, x)
        for i, module in enumerate(block.branch2):
            out = plug(module(out), f'after_conv{i + 1}')
        if block.stride > 1:
            kept = block.branch1(kept)
        out = torch.cat([kept, out], 1)
        return torch.nn.functional.channel_shuffle(out, 2)
    if kind == 'STDCModule':
        first = plug(block.layers[0](x), 'after_conv1')
        out = first
        if block.stride == 2 and block.fusion_type == 'cat':
            first = block.skip(first)
            out = block.downsample(out)
        parts = [first]
        for i, module in enumerate(block.layers[1:]):
            out = plug(module(out), f'after_conv{i + 2}')
            parts.append(out)
        out = torch.cat(parts, 1)
        if block.fusion_type == 'cat':
            return out
        return out + (block.skip(x) if block.stride == 2 else x)
    if kind == 'BasicConvBlock':
        for i, module in enumerate(block.convs):
            x = plug(module(x), f'after_conv{i + 1}')
        return x
    if kind == 'EdgeResidual':
        out = plug(block.conv1(x), 'after_conv1')
        out = block.se(out) if block.with_se else out
        out = plug(block.conv2(out), 'after_conv2')
        return x + out if block.with_residual else out
    assert kind.startswith('InvertedResidual')
    if hasattr(block, 'conv'):
        *expand, depthwise, linear = block.conv
        residual, attend = block.use_res_connect, torch.nn.Identity()
    else:
        expand = [block.expand_conv] if block.with_expand_conv else []
        depthwise, linear = block.depthwise_conv, block.linear_conv
        residual = block.with_res_shortcut
        attend = block.se if block.with_se else torch.nn.Identity()
    out = x
    for module in expand:
        out = plug(module(out), 'after_conv1')
    out = attend(plug(depthwise(out), 'after_conv2'))
    out = plug(linear(out), 'after_conv3')
    return x + out if residual else out


@pytest.mark.parametrize(
    'codebase, name, kwargs',
    [
        ('mmpose', 'LiteHRNet-naive', {}),
        ('mmpose', 'MobileNetV2', {}),
        ('mmpose', 'MobileNetV3', {}),
        ('mmpose', 'ShuffleNetV1', {}),
        ('mmpose', 'ShuffleNetV2', {}),
        ('mmpose', 'ViPNAS_MobileNetV3', {}),
        ('mmseg', 'MobileNetV2', {}),
        ('mmseg', 'MobileNetV3', {}),
        ('mmseg', 'STDCNet', {}),
        ('mmseg', 'STDCNet', dict(bottleneck_type='add')),
        ('mmseg', 'UNet', {}),
        ('mmdet', 'EfficientNet', {}),
        ('mmdet', 'EfficientNet-es', {}),
        ('mmdet', 'MobileNetV2', {}),
        *(
            pytest.param(*x.values, {}, marks=x.marks)
            for x in LIGHT_MMPRETRAIN
        ),
    ],
)
def test_where_plugins_run_in_light_blocks(codebase, name, kwargs):
    """Each block, on what it reads there, against its forward written out."""
    plain = evaluated(randomise(build(codebase, name, **kwargs)))
    backbone = copy.deepcopy(plain)
    entries = [e for e in takes(backbone) if e['position'] in IN_BLOCKS]
    for entry in entries:
        entry['cfg']['factor'] = FACTORS[entry['position']]
    names = insert_plugins(backbone, entries)
    bare = dict(plain.named_modules())
    seen = {}
    blocks = {n.rpartition('.')[0]: {} for n in names}
    # the keys are those of the block's children
    for path in blocks:
        blocks[path] = {
            p: f for p, f in FACTORS.items() if f'{path}.probe{p}' in names
        }
        bare[path].register_forward_pre_hook(
            lambda block, args: seen.__setitem__(block, args[0].clone())
        )
    plain(images())
    modules = dict(backbone.named_modules())
    assert len(seen) == len(blocks) >= 3
    for path, factors in blocks.items():
        x = seen[bare[path]]
        expected = light_forward(
            bare[path], x.clone(), lambda x, p: x * factors.get(p, 1.0)
        )
        torch.testing.assert_close(modules[path](x), expected)


def test_a_block_without_expansion_has_no_first_position():
    """The first stage of MobileNetV2; in mixed stages it is passed over."""
    backbone = build('mmpose', 'MobileNetV2')
    entry = probe('after_conv1')
    with pytest.raises(
        ValueError,
        match='layer1.0 .InvertedResidual. has no module .* for after_conv1',
    ):
        insert_plugins(backbone, [entry])
    backbone.layer2.append(backbone.layer1[0])
    names = insert_plugins(
        backbone, [dict(entry, stages=[False, True] + [False] * 5)]
    )
    assert names == [f'layer2.{i}.probeafter_conv1' for i in range(2)]


@pytest.mark.parametrize(
    'codebase, name', [('mmpose', 'HRNet'), ('mmdet', 'CSPNeXt')]
)
def test_after_stage_is_what_the_next_one_reads(codebase, name):
    """A stage's maps, doubled in its hooks or by its plugins."""
    plain = evaluated(randomise(build(codebase, name)))
    backbone = copy.deepcopy(plain)
    stage = dict(mmpose='stage3', mmdet='stage2')[codebase]
    only = (False, codebase == 'mmdet', codebase == 'mmpose', False)
    names = insert_plugins(backbone, [probe('after_stage', 2.0, stages=only)])
    assert len(names) == (3 if codebase == 'mmpose' else 1)
    assert all(n.startswith(f'{stage}.') for n in names)
    assert '.after_stage.0.probe' in names[0]
    getattr(plain, stage).register_forward_hook(
        lambda module, args, out: (
            [2 * x for x in out] if isinstance(out, list) else 2 * out
        )
    )
    x = images()
    for a, b in zip(run(backbone, x), maps_of(plain(x))):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    'codebase, name, selected',
    [
        ('mmseg', 'HRNet', [False, True, False, True]),
        ('mmpose', 'SwinTransformer', [True, False, False, True]),
        ('mmseg', 'VisionTransformer', [False, True]),
        ('mmdet', 'SSDVGG', [True, False]),
    ],
)
def test_output_is_what_the_backbone_returns(codebase, name, selected):
    plain = evaluated(build(codebase, name))
    backbone = copy.deepcopy(plain)
    names = insert_plugins(backbone, [probe('output', 2.0, stages=selected)])
    assert names == [
        f'output.{i}.probeoutput' for i, flag in enumerate(selected) if flag
    ]
    x = images()
    expected = plain(x)
    ours = backbone(x)
    assert type(ours) is type(expected)
    for a, b, flag in zip(ours, expected, selected):
        assert torch.equal(a, 2 * b if flag else b)


@pytest.mark.parametrize('name', ['DDRNet', 'PIDNet'])
def test_maps_of_training_alone_stay_as_they_are(name):
    backbone = randomise(build('mmseg', name))
    assert insert_plugins(backbone, [probe('output', 2.0)]) == [
        'output.0.probeoutput'
    ]
    (plugin,) = probes(backbone)
    x = images()
    run(backbone, x)
    seen = plugin.weight.shape[0]
    widths = [y.shape[1] for y in maps_of(backbone(x))]
    assert widths.count(seen) == 1 and len(widths) > 1


def test_two_at_one_map():
    """In order, and a name is taken once."""
    backbone = build('mmseg', 'ResNet18')
    first, second = probe('output', 2.0), probe('output', 3.0)
    second['cfg']['postfix'] = 'b'
    insert_plugins(backbone, [first])
    insert_plugins(backbone, [second])
    there = backbone.get_submodule('output.0')._modules
    assert [*there] == ['probeoutput', 'probeb']
    run(backbone, images())
    for entry in (first, second):
        with pytest.raises(ValueError, match='is taken in output.0'):
            insert_plugins(backbone, [entry])


def test_frozen_stages_freeze_what_is_after_them():
    entries = [probe('after_stage'), probe('output')]
    backbone = build('mmpose', 'ResNet18', plugins=entries, frozen_stages=2)
    for _ in range(2):
        for i, layer in enumerate(backbone.res_layers):
            for p in probes(getattr(backbone, layer)):
                assert p.weight.requires_grad == (i >= 2)
                assert p.training == (i >= 2)
        (last,) = probes(backbone.output)
        assert last.weight.requires_grad
        backbone.train()


@pytest.mark.parametrize('position', ['after_stage', 'output'])
def test_weights_at_maps(position, tmp_path):
    """Own initialisation from scratch, the file's where it has some."""
    cfg = dict(type='PSA', identity_init=True)
    plugins = [dict(cfg=cfg, position=position)]
    scratch = build('mmpose', 'HRNet', plugins=plugins)
    scratch.init_weights()
    psa = [m for m in scratch.modules() if type(m).__name__[:5] == 'Polar']
    assert psa
    for block in psa:
        assert not block.sp_wv.weight.any()

    baseline = randomise(upstream('mmpose', 'HRNet'))
    for saved in (baseline, randomise(scratch)):
        torch.save(saved.state_dict(), tmp_path / 'saved.pth')
        init_cfg = dict(
            type='Pretrained', checkpoint=str(tmp_path / 'saved.pth')
        )
        backbone = build('mmpose', 'HRNet', plugins=plugins, init_cfg=init_cfg)
        backbone.init_weights()
        x = images()
        for a, b in zip(evaluated(backbone)(x), evaluated(saved)(x)):
            assert torch.equal(a, b)


def test_not_where_a_recursive_pyramid_calls_blocks():
    backbone = build('mmdet', 'DetectoRS_ResNet50', rfp_inplanes=16)
    for position in ('after_stage', 'output'):
        with pytest.raises(ValueError, match='recursive feature pyramid'):
            insert_plugins(backbone, [probe(position)])


def test_a_stage_of_single_layers_holds_no_plugins():
    """It would run them, and a runner may replace its layers."""

    class Backbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = torch.nn.Sequential(
                torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            )

        def forward(self, x):
            return self.layer1(x)

    backbone = Backbone()
    names = insert_plugins(backbone, [probe('after_stage'), probe('output')])
    assert names == [
        'after_module.layer1.probeafter_stage',
        'output.0.probeoutput',
    ]
    run(backbone, images())


def test_stages_without_blocks_are_named():
    backbone = build('mmpose', 'HRFormer')
    message = r"\['stages'\] has stage 2 of 4, which takes .* stage2 has no"
    with pytest.raises(ValueError, match=message):
        insert_plugins(backbone, [probe('after_conv1')])
    assert not probes(backbone)
    only = (True, False, False, False)
    insert_plugins(backbone, [probe('after_conv1', stages=only)])
    run(backbone, images())


def named_instead():
    """Those whose blocks are named by a pattern in the table."""
    both = 'LiteHRNet-naive'  # its other blocks have positions
    for codebase, backbones in BACKBONES.items():
        missing = pytest.mark.skipif(
            find_spec(codebase) is None, reason=f'{codebase} is not installed'
        )
        for name, cfg in backbones.items():
            if cfg['type'] in MODULES_INSTEAD and name != both:
                yield pytest.param(codebase, name, marks=missing)


@pytest.mark.parametrize('codebase, name', named_instead())
def test_patterns_of_the_table_match_and_run(codebase, name):
    backbone = build(codebase, name)
    pattern = MODULES_INSTEAD[type(backbone).__name__]
    with pytest.raises(ValueError, match=re.escape(f'modules={pattern!r}')):
        insert_plugins(backbone, [probe('after_conv1')])
    names = insert_plugins(
        backbone, [dict(cfg=dict(type='Probe'), modules=pattern)]
    )
    # with fewer, the pattern would name no blocks
    assert len(names) >= 2
    # runs it at a size that it takes; every plugin must run
    assert set(find_widths(backbone, names)) == set(names)


def test_a_missing_position_names_those_there_are():
    with pytest.raises(
        ValueError,
        match='UNet takes no plugin after_conv3: .* it has after_conv1, after_'
        "conv2, after_3x3, after_stage, output; or use modules='…'; its "
        'modules are enc',
    ):
        insert_plugins(build('mmseg', 'UNet'), [probe('after_conv3')])
    with pytest.raises(ValueError, match=r'it has no positions'):
        insert_plugins(build('mmpose', 'TCN'), [probe('after_conv3')])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv1(x)


class Pair(NamedTuple):
    fine: torch.Tensor
    coarse: torch.Tensor


class Stages(nn.Module):
    """Two stages that share a block; a named tuple of maps."""

    def __init__(self):
        super().__init__()
        shared = Block()
        self.layer1 = nn.Sequential(Block(), shared)
        self.layer2 = nn.Sequential(shared, Block())

    def forward(self, x):
        fine = self.layer1(x)
        return Pair(fine, self.layer2(fine))


BLOCKS = ['layer1.0', 'layer1.1', 'layer2.1']


@pytest.fixture
def stages():
    declare_block(Block, after_conv1='conv1')
    return Stages()


def test_a_block_of_two_stages_has_one_plugin(stages):
    names = insert_plugins(stages, [probe('after_conv1')])
    assert names == [f'{block}.probeafter_conv1' for block in BLOCKS]
    stages(images())
    assert [p.calls for p in probes(stages)] == [1, 2, 1]


def test_a_shared_block_is_initialised():
    class Net(Stages, BaseModule):
        pass

    declare_block(Block, after_conv1='conv1')
    net = Net()
    insert_plugins(net, [probe('after_conv1')])
    keys = [*net.state_dict()]
    net.init_weights()
    assert [*net.state_dict()] == keys


def test_two_names_of_a_module_are_one_place(stages):
    entries = [
        dict(cfg=dict(type='Probe'), modules=f'layer{i}.{j}')
        for i, j in ((1, 1), (2, 0))
    ]
    message = (
        r"plugins\[1\]: the name 'probe' is taken in layer2.0 by plugins\[0\]"
    )
    with pytest.raises(ValueError, match=message):
        insert_plugins(stages, entries)
    assert not probes(stages)


@pytest.mark.parametrize('kind', [nn.Sequential, nn.ModuleList])
def test_a_stage_that_is_a_container_with_a_forward(kind):
    class Stage(kind):
        def forward(self, x):
            for module in self:
                x = module(x)
            return x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = (
                Stage([Block()]) if kind is nn.ModuleList else Stage(Block())
            )

        def forward(self, x):
            return self.layer1(x)

    net = Net()
    insert_plugins(net, [probe('after_stage')])
    net(images())
    assert [p.calls for p in probes(net)] == [1]


def test_a_stage_of_blocks_of_another_has_none(stages):
    del stages.layer2[1]
    with pytest.raises(ValueError, match='layer2.0 is in an earlier stage'):
        insert_plugins(stages, [probe('after_conv1')])


def test_maps_in_a_named_tuple(stages):
    insert_plugins(stages, [probe('output', 2.0)])
    output = stages(images())
    assert isinstance(output, Pair)
    assert [p.calls for p in probes(stages)] == [1, 1]


def test_plugins_take_no_plugins(stages):
    @MODELS.register_module(force=True)
    class Inner(nn.Module):
        def __init__(self, in_channels):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return self.block(x)

    entry = dict(cfg=dict(type='Inner'), position='after_conv1')
    insert_plugins(stages, [entry])
    names = insert_plugins(stages, [probe('after_conv1')])
    assert names == [f'{block}.probeafter_conv1' for block in BLOCKS]


def test_stages_to_write_are_said():
    with pytest.raises(
        ValueError, match=r'leave it out: stages=\(False, True, True, False\)'
    ):
        flags = [False, True, True, True]
        insert_plugins(
            build('mmpose', 'ShuffleNetV2'),
            [probe('after_conv1', stages=flags)],
        )
