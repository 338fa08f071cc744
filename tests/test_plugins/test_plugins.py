"""Insertion: where a plugin runs, and that it goes on running."""

import copy
import io
import pickle
from inspect import signature

import pytest
import torch
from helpers import (
    ALL,
    Probe,
    build,
    images,
    last_position,
    positions,
    probes,
    randomise,
    upstream,
)
from mmcv.cnn import fuse_conv_bn
from mmengine.model import (
    ExponentialMovingAverage,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from torch import nn

from mmpsa import insert_plugins
from mmpsa.compatibility import release


def probe(position, factor=1.0, **kwargs):
    cfg = dict(type='Probe', factor=factor)
    if 'postfix' in kwargs:
        cfg['postfix'] = kwargs.pop('postfix')
    return dict(cfg=cfg, position=position, **kwargs)


def blocks(backbone):
    return [m for m in backbone.modules() if hasattr(m, 'downsample')]


def run(backbone, x):
    """Every probe must run exactly once."""
    for p in probes(backbone):
        p.calls = 0
    out = backbone(x)
    assert probes(backbone)
    assert {p.calls for p in probes(backbone)} == {1}
    return out


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b)) and len(a) == len(b)


def block_forward(block, x, plugins):
    """What a block computes when it is written with plugins in it."""

    def plug(x, position):
        for factor in plugins.get(position, ()):
            x = x * factor
        return x

    kind = type(block).__name__
    if kind == 'SCBottleneck':
        a = block.norm1(block.conv1(x)).relu()
        a = block.k1(plug(a, 'after_conv1'))
        b = block.norm2(block.conv2(x)).relu()
        b = block.scconv(plug(b, 'after_conv2'))
        out = block.norm3(block.conv3(torch.cat([a, b], 1)))
        out = plug(out, 'after_conv3')
    else:
        out = plug(block.norm1(block.conv1(x)).relu(), 'after_conv1')
        out = block.norm2(block.conv2(out))
        if hasattr(block, 'conv3'):
            out = plug(out.relu(), 'after_conv2')
            out = plug(block.norm3(block.conv3(out)), 'after_conv3')
        else:
            out = plug(out, 'after_conv2')
        if kind == 'SEBottleneck':
            out = block.se_layer(out)
    identity = x if block.downsample is None else block.downsample(x)
    return (out + identity).relu()


@pytest.mark.parametrize('codebase, name', ALL)
def test_where_plugins_run(codebase, name):
    """Against each block's forward written out with plugins in it."""
    factors = {p: (1.5 + i, -0.5) for i, p in enumerate(positions(name))}
    plain = randomise(build(codebase, name))
    backbone = copy.deepcopy(plain)
    for i in range(2):
        insert_plugins(
            backbone,
            [probe(p, f[i], postfix=f'{p}{i}') for p, f in factors.items()],
        )
    plain.eval(), backbone.eval()
    tested = 0
    for block, bare in zip(blocks(backbone), blocks(plain)):
        x = torch.rand(2, block.conv1.in_channels, 8, 8)
        expected = block_forward(bare, x, factors)
        torch.testing.assert_close(run(block, x), expected)
        tested += 1
    assert tested >= 8


@pytest.mark.parametrize('codebase, name', ALL)
def test_width_is_the_convolutions(codebase, name):
    backbone = build(
        codebase, name, plugins=[probe(p, postfix=p) for p in positions(name)]
    )
    for block in blocks(backbone):
        for position in positions(name):
            width = len(getattr(block, f'probe{position}').weight)
            conv = getattr(block, position[len('after_') :])
            assert width == conv.out_channels


@pytest.mark.parametrize('codebase, name', ALL)
def test_plugins_survive_what_runners_do(codebase, name):
    """Counted at every position after each change to the model."""
    x = images()
    make = dict(plugins=[probe(p, postfix=p) for p in positions(name)])
    backbone = build(codebase, name, **make)
    run(backbone, x)

    clone = copy.deepcopy(backbone)
    run(clone, x)
    assert not {*map(id, probes(clone))} & {*map(id, probes(backbone))}
    run(pickle.loads(pickle.dumps(backbone)), x)
    buffer = io.BytesIO()
    torch.save(backbone, buffer)
    buffer.seek(0)
    run(torch.load(buffer, weights_only=False), x)
    run(ExponentialMovingAverage(backbone).module, x)

    synced = build(codebase, name, norm_cfg=dict(type='SyncBN'), **make)
    synced.load_state_dict(backbone.state_dict())
    run(revert_sync_batchnorm(synced), x)

    backbone.eval()
    expected = run(backbone, x)
    converted = convert_sync_batchnorm(copy.deepcopy(backbone))
    converted.eval()
    assert same(run(converted, x), expected)
    assert same(run(revert_sync_batchnorm(converted), x), expected)
    fused = fuse_conv_bn(copy.deepcopy(backbone))
    for a, b in zip(run(fused, x), expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('codebase, name', ALL)
def test_copies_are_independent(codebase, name):
    plugins = [probe(last_position(name))]
    backbone = randomise(build(codebase, name, plugins=plugins))
    backbone.eval()
    x = images()
    expected = backbone(x)
    clone = copy.deepcopy(backbone)
    for p in probes(clone):
        nn.init.zeros_(p.weight)
    assert same(backbone(x), expected)
    assert not same(clone(x), expected)


@pytest.mark.parametrize(
    'codebase, name',
    [
        ('mmseg', 'ResNet50'),
        ('mmseg', 'ResNetV1c50'),
        ('mmdet', 'ResNet50'),
    ],
)
@pytest.mark.parametrize('plugin', ['ContextBlock', 'NonLocal2d', 'PSA'])
def test_equals_native_plugins(codebase, name, plugin):
    """The Bottleneck of these has plugins of its own."""
    cfg = dict(type=plugin)
    if plugin == 'ContextBlock':
        cfg['ratio'] = 0.5
    plugins = [
        dict(cfg=dict(cfg, postfix=3), position='after_conv3'),
        dict(
            cfg=dict(cfg, postfix='_a'),
            position='after_conv1',
            stages=(False, True, True, False),
        ),
        dict(cfg=cfg, position='after_conv2', stages=(True, False) * 2),
    ]
    given = copy.deepcopy(plugins)
    ours = build(codebase, name, plugins=plugins)
    assert plugins == given
    theirs = upstream(codebase, name, plugins=plugins)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = images()
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        for a, b in zip(ours(x), theirs(x)):
            torch.testing.assert_close(a, b)


def test_hrnet_stages_are_whole_stages():
    backbone = build('mmpose', 'HRNet')
    only = [False, False, True, False]
    names = insert_plugins(backbone, [probe('after_conv1', stages=only)])
    assert names == [
        f'stage3.0.branches.{branch}.0.probe' for branch in range(3)
    ]
    modules = dict(backbone.named_modules())
    assert all(type(modules[name]) is Probe for name in names)


@pytest.mark.parametrize('codebase', ['mmpose', 'mmseg'])
def test_insert_into_a_built_backbone(codebase):
    """The same as plugins= in the config, twice in a row as well."""
    first = probe('after_conv1', 2.0)
    second = probe('after_conv1', 3.0, postfix='2')
    built = build(codebase, 'ResNet18', plugins=[first, second])
    backbone = upstream(codebase, 'ResNet18')
    names = insert_plugins(backbone, [first])
    names += insert_plugins(backbone, [second])
    assert sorted(names) == sorted(
        name for name, m in built.named_modules() if isinstance(m, Probe)
    )
    assert list(built.state_dict()) == list(backbone.state_dict())
    backbone.load_state_dict(built.state_dict())
    x = images()
    assert same(run(backbone, x), run(built, x))


def test_follows_its_block():
    """dtype, mode and freezing of the block it is put into."""
    backbone = upstream('mmpose', 'ResNet18', frozen_stages=2).double()
    backbone.train()
    insert_plugins(backbone, [probe('after_conv1')])
    for stage, layer in enumerate(
        (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    ):
        for p in probes(layer):
            assert p.weight.dtype == torch.double
            assert p.weight.requires_grad == (stage >= 2)
            assert p.training == (stage >= 2)
    run(backbone, images().double())


@pytest.mark.parametrize('codebase, name', ALL)
def test_frozen_stages_and_norm_eval(codebase, name):
    backbone = build(
        codebase,
        name,
        plugins=[probe('after_conv1')],
        frozen_stages=1,
        norm_eval=True,
    )
    for _ in range(2):
        for key, parameter in backbone.named_parameters():
            if 'probe' in key:
                assert parameter.requires_grad != key.startswith('layer1.')
        backbone.train()
    assert not any(
        m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)
    )


@pytest.mark.parametrize('codebase, name', ALL)
def test_with_cp(codebase, name):
    """Checkpointed activations: same output, same gradients."""
    plugins = [probe(p, 1.1, postfix=p) for p in positions(name)]
    plain = randomise(build(codebase, name, plugins=plugins))
    recomputed = build(codebase, name, plugins=plugins, with_cp=True)
    recomputed.load_state_dict(plain.state_dict())
    results = []
    for backbone in (plain, recomputed):
        x = images().double().requires_grad_()
        backbone.double().eval()
        out = backbone(x)
        sum(level.sum() for level in out).backward()
        results.append(
            [*out, x.grad, *(p.weight.grad for p in probes(backbone))]
        )
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def with_psa_and_probe(codebase, name, **kwargs):
    last = probe(last_position(name), 0.5)
    psa = dict(cfg=dict(type='PSA'), position='after_conv1')
    maps = [probe(p, 0.5) for p in ('after_stage', 'output')]
    named = dict(cfg=dict(type='Probe', factor=0.5), modules='layer1')
    plugins = [psa, last, *maps, named]
    backbone = build(codebase, name, plugins=plugins, **kwargs)
    # what exporters read the names of the inputs from
    theirs = upstream(codebase, name).forward
    assert signature(backbone.forward) == signature(theirs)
    randomise(backbone)
    backbone.eval()
    return backbone


@pytest.mark.parametrize('codebase, name', ALL)
def test_trace(codebase, name):
    # float64: BN over few positions makes much of float32's rounding
    backbone = with_psa_and_probe(codebase, name).double()
    x = images().double()
    traced = torch.jit.trace(backbone, x, check_trace=False)
    x = x.flip(0, 2)
    for a, b in zip(traced(x), backbone(x)):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(
    release(torch.__version__) < (2, 6, 0),
    reason='torch 2.1 cannot export a module with hooks of this kind',
)
@pytest.mark.parametrize(
    'codebase, name', [(c, n) for c, n in ALL if n.startswith('ResNet')]
)
def test_export_and_compile(codebase, name):
    one_stage = dict(
        num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)
    )
    backbone = with_psa_and_probe(codebase, name, **one_stage)
    x = images()
    exported = torch.export.export(backbone, (x,)).module()
    compiled = torch.compile(backbone, fullgraph=True, backend='eager')
    for forward in (exported, compiled):
        torch.testing.assert_close(forward(x)[0], backbone(x)[0])


def test_any_registered_plugin_of_any_scope():
    backbone = build(
        'mmpose',
        'HRNet',
        plugins=[
            dict(cfg=dict(type='mmpsa.PSA'), position='after_conv1'),
            dict(
                cfg=dict(type='ContextBlock', ratio=0.5, _scope_='mmseg'),
                position='after_conv1',
            ),
            dict(
                cfg=dict(type='NonLocal2d', sub_sample=True),
                position='after_conv2',
                stages=(False, False, False, True),
            ),
            dict(cfg=dict(type=Probe), position='after_conv2'),
        ],
    )
    block = backbone.stage4[0].branches[0][0]
    children = [name for name, _ in block.named_children()]
    assert children[-4:] == ['psa', 'context_block', 'nonlocal_block', 'probe']
    run(backbone, images())


REFUSED = [
    (dict(), TypeError, 'plugins must be a list of dicts, got dict'),
    (['PSA'], TypeError, r'plugins\[0\] must be a dict, got str'),
    ([dict(position='after_conv1')], ValueError, "lacks the key 'cfg'"),
    ([dict(cfg=dict(type='PSA'))], ValueError, "lacks the key 'position'"),
    (
        [dict(type='PSA', position='after_conv1')],
        ValueError,
        r"unknown key 'type'; .* inside cfg: cfg=dict\(type='PSA', …\)",
    ),
    (
        [dict(cfg='PSA', position='after_conv1')],
        TypeError,
        r"\['cfg'\] must be a dict, got str",
    ),
    (
        [dict(cfg=dict(layout='parallel'), position='after_conv1')],
        ValueError,
        "lacks the key 'type'",
    ),
    (
        [probe('after_conv1', postfix=1.5)],
        ValueError,
        r"\['postfix'\] must be an int or a str of letters, .* got 1.5",
    ),
    (
        [dict(probe('after_conv1'), postfix='1')],
        ValueError,
        "unknown key 'postfix'; .* belong inside cfg",
    ),
    (
        [dict(probe('after_conv1'), stage=(True,))],
        ValueError,
        "unknown key 'stage'; allowed are",
    ),
    (
        [probe('before_conv1')],
        ValueError,
        r"\['position'\] must be one of .* got 'before_conv1'",
    ),
    (
        [probe('after_conv3')],
        ValueError,
        r"\['position'\]: .* layer1.0 \(BasicBlock\) has after_conv1, aft",
    ),
    (
        [probe('after_conv1', stages=(True,) * 3)],
        ValueError,
        r"\['stages'\] must be 4 booleans.* got \(True, True, True\)",
    ),
    (
        [probe('after_conv1', stages=(1, 2, 3, 4))],
        ValueError,
        r'must be 4 booleans.* got \(1, 2, 3, 4\)',
    ),
    (
        [probe('after_conv1'), probe('after_conv2')],
        ValueError,
        r"plugins\[1\]: the name 'probe' is taken in layer1.0.*postfix",
    ),
    (
        [dict(cfg=dict(type='Nothing'), position='after_conv1')],
        ValueError,
        r"plugins\[0\]\['cfg'\] cannot be built .*Nothing",
    ),
    (
        [dict(cfg=dict(type='PSA', ratio=16), position='after_conv1')],
        ValueError,
        'cannot be built for layer1.0 with in_channels=8: .*ratio.*'
        r'PolarizedSelfAttention takes layout, variant, .*, device, dtype$',
    ),
    (
        [dict(cfg=dict(type=nn.SiLU), position='after_conv1')],
        ValueError,
        'SiLU must take in_channels; mmpsa passes the width',
    ),
    # what could be taken for plugins
    ('PSA', TypeError, 'plugins must be a list of dicts, got str'),
    (True, TypeError, 'plugins must be a list of dicts, got bool'),
    (3, TypeError, 'plugins must be a list of dicts, got int'),
    (iter([probe('after_conv1')]), TypeError, 'plugins must be a list'),
    ([None], TypeError, r'plugins\[0\] must be a dict, got NoneType'),
    ([[probe('after_conv1')]], TypeError, r'plugins\[0\] must be a dict'),
    ([probe('after_conv1'), 1], TypeError, r'plugins\[1\] must be a dict'),
    ([{}], ValueError, r"plugins\[0\] lacks the key 'cfg'"),
    ([{**probe('after_conv1'), 1: 2}], ValueError, 'unknown key 1;'),
    # … for a position
    *(
        ([probe(position)], ValueError, r"\['position'\] must be one of")
        for position in (
            'after_conv0',
            'after_conv4',
            'after_conv-1',
            'AFTER_CONV1',
            'conv1',
            'after_conv1 ',
            'outputs',
            '',
            None,
            1,
            ['after_conv1'],
            ('after_conv1', 'after_conv2'),
        )
    ),
    # … for stages
    *(
        (
            [probe('after_conv1', stages=stages)],
            ValueError,
            r"\['stages'\] must be 4 booleans, one for each stage of",
        )
        for stages in (
            (1, 0, 1, 1),
            ('True',) * 4,
            'True',
            '1111',
            True,
            4,
            (),
            (True,) * 5,
            (True, True, True, None),
            (1.0,) * 4,
            {0: True, 1: True, 2: True, 3: True},
        )
    ),
    (
        [probe('output', stages=(True,) * 4)],
        ValueError,
        r"\['stages'\] must be 1 boolean, one for each output of the back",
    ),
    (
        [probe('after_stage', stages=(1,) * 4)],
        ValueError,
        r"\['stages'\] must be 4 booleans",
    ),
    # … for a cfg
    *(
        ([dict(cfg=cfg, position='after_conv1')], error, message)
        for cfg, error, message in (
            ({}, ValueError, r"\['cfg'\] lacks the key 'type'"),
            (None, TypeError, r"\['cfg'\] must be a dict, got NoneType"),
            ([('type', 'PSA')], TypeError, r"\['cfg'\] must be a dict"),
            (dict(type=None), TypeError, r"\['type'\] must be a registered"),
            (dict(type=5), TypeError, r"\['type'\] must be a registered"),
            (dict(type=['PSA']), TypeError, r"\['type'\] must be a regist"),
            (dict(type=''), ValueError, r"\['cfg'\] cannot be built"),
            (dict(type='psa'), ValueError, r"\['cfg'\] cannot .*psa"),
            (dict(type='mmseg.Nope'), ValueError, r"\['cfg'\] .*Nope"),
            (
                dict(type='ResNet', _scope_='mmpose'),
                ValueError,
                r"\['type'\] must be a plugin",
            ),
            (dict(type='BN'), ValueError, r"\['cfg'\] cannot be built"),
            (dict(type=nn.ReLU), ValueError, r"\['cfg'\] cannot be built"),
            (dict(type='PSA', layout='both'), ValueError, 'layout must be'),
            (dict(type='PSA', layout=None), ValueError, 'layout must be'),
            (dict(type='PSA', variant='x'), ValueError, 'variant must be'),
            (dict(type='PSA', in_channels=8), ValueError, 'in_channels'),
            (dict(type='PSA', backend='gpu'), ValueError, 'backend'),
            (
                dict(type='PSA', variant='official', layout='channel'),
                ValueError,
                'layout must be one of',
            ),
            (
                dict(type='PSA', variant='official', identity_init=True),
                ValueError,
                'identity_init needs',
            ),
            (
                dict(type='PSA', identity_init='no'),
                ValueError,
                "identity_init must be a bool, got 'no'",
            ),
            (dict(type='PSA', _scope_=1), TypeError, r"\['_scope_'\] must"),
            *(
                (
                    dict(type='PSA', postfix=postfix),
                    ValueError,
                    r"\['postfix'\] must be an int or a str",
                )
                for postfix in (-1, True, 'a.b', 'a b', None, ['1'])
            ),
        )
    ),
    # … and for two that go together
    (
        [probe('output'), probe('after_conv1'), probe('output')],
        ValueError,
        r"plugins\[2\]: the name 'probe' is taken in output.0",
    ),
]


@pytest.mark.parametrize('plugins, error, message', REFUSED)
def test_refused_plugins(plugins, error, message):
    """Nothing is inserted then."""
    backbone = build('mmpose', 'ResNet18')
    keys = list(backbone.state_dict())
    with pytest.raises(error, match=message):
        insert_plugins(backbone, plugins)
    assert list(backbone.state_dict()) == keys
    with pytest.raises(error, match=message):
        build('mmpose', 'ResNet18', plugins=plugins)


def test_refused_modules():
    """What is no backbone: a layer, a neck that reads several maps."""
    from mmseg.models.necks import FPN

    for module in (nn.Conv2d(3, 3, 1), FPN([8, 16], 8, num_outs=2)):
        name = type(module).__name__
        with pytest.raises(ValueError, match=f'{name} takes no plugin'):
            insert_plugins(module, [probe('after_conv1')])
    with pytest.raises(ValueError, match='FPN does not run on pictures'):
        insert_plugins(module, [probe('output')])
