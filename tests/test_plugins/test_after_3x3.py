"""The paper's place: after the first convolution larger than 1×1."""

import pytest
import torch
from helpers import EVERY, Probe, build, images, probes, randomise
from mmcv.cnn import ConvModule
from mmengine.utils import to_2tuple
from torch import nn

from mmpsa import declare_block, insert_plugins
from mmpsa.plugins.blocks import CONV_POSITIONS, positions_of
from mmpsa.plugins.sites import SiteFinder

# Their first larger convolution consists of several, or of others too: splits,
# a ladder, split attention, a unit whose other branch has a convolution.
MANY = ('Bottle2neck', 'RSB', 'ResNeSt50', 'ShuffleUnit', 'ShuffleNetV2')


def entry(position, postfix='', factor=1.0, **kwargs):
    cfg = dict(type='Probe', postfix=postfix, factor=factor)
    return dict(cfg=cfg, position=position, **kwargs)


def everywhere(backbone, *positions):
    """Entries at the stages that have each position."""
    found = []
    for position in positions:
        stages = [
            bool(stage.sites)
            for stage in SiteFinder(backbone).find_by_stage(position)
        ]
        if any(stages):
            found.append(entry(position, f'_{position}', stages=stages))
    return found


@pytest.mark.parametrize('codebase, name', EVERY)
def test_after_the_first_larger_convolution(codebase, name):
    """By the order in which the modules of each block run."""
    backbone = randomise(build(codebase, name))
    entries = everywhere(backbone, 'after_3x3')
    # SCNet has blocks, but none with a first one
    others = everywhere(backbone, *CONV_POSITIONS)
    assert bool(entries) == (bool(others) and name != 'SCNet50')
    names = insert_plugins(backbone, entries)
    blocks = {
        backbone.get_submodule(path.rpartition('.')[0]): [] for path in names
    }
    for block, events in blocks.items():
        for module in block.modules():
            if isinstance(module, Probe):
                what = 'plugin'
            elif hasattr(module, 'kernel_size') and hasattr(module, 'weight'):
                what = max(to_2tuple(module.kernel_size))
            else:
                continue
            module.register_forward_hook(
                lambda *_, events=events, what=what: events.append(what)
            )
    if names:
        backbone.eval()
        backbone(images())
    for block, events in blocks.items():
        kind = type(block).__name__
        before = events[: events.index('plugin')]
        first = next(i for i, kernel in enumerate(before) if kernel > 1)
        if not {kind, name} & {*MANY}:
            assert before[first + 1 :] == [], kind


@pytest.mark.parametrize(
    'codebase, name, kind, position',
    [
        ('mmpose', 'HRNet', 'BasicBlock', 'after_conv1'),
        ('mmpose', 'HRNet', 'Bottleneck', 'after_conv2'),
        ('mmpose', 'MobileNetV3', 'InvertedResidual', 'after_conv2'),
        ('mmpose', 'ResNeSt50', 'Bottleneck', 'after_conv2'),
        ('mmpose', 'RSN', 'RSB', 'after_conv2'),
        ('mmpose', 'ShuffleNetV2', 'InvertedResidual', 'after_conv2'),
        ('mmseg', 'UNet', 'BasicConvBlock', 'after_conv1'),
        ('mmdet', 'CSPNeXt', 'CSPNeXtBlock', 'after_conv1'),
        ('mmdet', 'Res2Net50', 'Bottle2neck', 'after_conv2'),
    ],
)
def test_another_name_of_a_position(codebase, name, kind, position):
    found = [
        positions_of(block)
        for block in build(codebase, name).modules()
        if type(block).__name__ == kind
    ]
    assert found
    assert all(x['after_3x3'] == x[position] for x in found)


@pytest.mark.parametrize('cat', [True, False])
def test_a_convolution_between_two_positions(cat):
    """STDC's downsampling, which is in the first layer if it adds."""
    kind = 'cat' if cat else 'add'
    backbone = build('mmseg', 'STDCNet', bottleneck_type=kind)
    names = {
        bool(block.with_downsample): positions_of(block)['after_3x3'].child
        for block in backbone.modules()
        if type(block).__name__ == 'STDCModule'
    }
    first = 'downsample' if cat else 'layers.0'
    assert names == {True: first, False: 'layers.1'}


@pytest.mark.parametrize('turned', [False, True])
def test_two_names_of_one_place_run_in_the_order_of_the_list(turned):
    """And the keys are in the order of the positions."""
    order = ['after_3x3', 'after_conv2']
    entries = [entry(p, f'_{p}') for p in (order[::-1] if turned else order)]
    backbone = build(
        'mmpose',
        'ResNet50',
        plugins=[
            entry('after_conv3', '_last'),
            *entries,
            entry('after_conv1'),
        ],
    )
    ran = []
    for plugin in probes(backbone.layer1[0]):
        plugin.register_forward_hook(lambda plugin, *_: ran.append(plugin))
    backbone(images())
    names = [
        name
        for each in ran
        for name, child in backbone.layer1[0].named_children()
        if child is each
    ]
    expected = [
        'probe',
        *(e['cfg']['postfix'].join(['probe', '']) for e in entries),
        'probe_last',
    ]
    assert names == expected
    children = [n for n, _ in backbone.layer1[0].named_children()]
    assert children[-4:] == expected


@pytest.mark.parametrize('position', ['after_3x3', 'after_conv2'])
def test_a_name_is_taken_under_both_names_of_a_place(position):
    with pytest.raises(ValueError, match=r"plugins\[1\]: the name 'probe' is"):
        build(
            'mmpose',
            'ResNet50',
            plugins=[entry('after_3x3'), entry(position)],
        )


class Block(nn.Module):
    """A 1×1 convolution, then a 3×3 one."""

    def __init__(self):
        super().__init__()
        self.small = ConvModule(3, 6, 1)
        self.large = ConvModule(6, 3, 3, padding=1)

    def forward(self, x):
        return self.large(self.small(x)) + x


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(Block())

    def forward(self, x):
        return self.layer1(x)


def test_declared_for_a_block_of_ones_own():
    declare_block(Block, after_conv1='small')
    with pytest.raises(
        ValueError,
        match='Backbone takes no plugin after_3x3: layer1.0 .Block. has '
        'after_conv1, and no after_3x3; .* larger than 1×1: '
        r"mmpsa.declare_block\(Block, after_3x3='…'\)",
    ):
        insert_plugins(Backbone(), [entry('after_3x3')])
    declare_block(Block, after_3x3='large')
    backbone = Backbone()
    assert insert_plugins(backbone, [entry('after_3x3', factor=2.0)]) == [
        'layer1.0.probe'
    ]
    x = images()
    plain = Block()
    plain.load_state_dict(backbone.layer1[0].state_dict(), strict=False)
    torch.testing.assert_close(
        backbone(x), 2 * plain.large(plain.small(x)) + x
    )


@pytest.mark.parametrize(
    'name, message',
    [
        (
            'SCNet50',
            'SCNet takes no plugin after_3x3: layer1.0 .SCBottleneck. has '
            'two 3×3 convolutions side by side: none is the first; it has '
            'after_conv1, after_conv2, after_conv3, after_stage',
        ),
        ('VGG', r"VGG takes no plugin after_3x3: .* modules='features\.\*'"),
    ],
)
def test_refused_where_there_is_none(name, message):
    with pytest.raises(ValueError, match=message):
        insert_plugins(build('mmpose', name), [entry('after_3x3')])


def test_refused_in_a_neck_and_beside_modules():
    neck = dict(
        type='FPN',
        _scope_='mmseg',
        in_channels=[8],
        out_channels=8,
        num_outs=1,
    )
    from mmseg.registry import MODELS

    with pytest.raises(
        ValueError, match="no backbone and has no positions, got 'after_3x3'"
    ):
        MODELS.build(dict(neck, plugins=[entry('after_3x3')]))
    with pytest.raises(ValueError, match="both 'modules' and 'position'"):
        build(
            'mmpose',
            'ResNet18',
            plugins=[entry('after_3x3', modules='layer1')],
        )
