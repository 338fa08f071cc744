"""What a user is told: mistakes named where they are made, starts said."""

import copy
import logging
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import Probe, build, images, probes, upstream
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from mmpsa import PSA, insert_plugins


def entry(position='after_conv1', **cfg):
    return dict(cfg=dict(dict(type='Probe'), **cfg), position=position)


@pytest.fixture
def log(monkeypatch):
    """Level and text of each line that the engine logs."""
    lines = []

    def print_log(message, logger=None, level=logging.INFO):
        lines.append((level, message))

    for module in ('insertion', 'initialisation'):
        monkeypatch.setattr(f'mmpsa.plugins.{module}.print_log', print_log)
    return lines


@MODELS.register_module()
class Halving(nn.Conv2d):
    def __init__(self, in_channels):
        super().__init__(in_channels, in_channels, 1, stride=2)


@pytest.mark.parametrize(
    'kind, like', [('psa', 'PSA'), ('Porbe', 'Probe'), ('mmseg.Prob', 'none')]
)
def test_a_type_that_is_not_registered(kind, like):
    with pytest.raises(
        ValueError, match=f"{kind}'.*names like it: .*{like}.*custom_imports"
    ):
        insert_plugins(build('mmpose', 'ResNet18'), [entry(type=kind)])


@pytest.mark.parametrize('position', ['after_conv1', 'after_stage', 'output'])
def test_a_plugin_that_changes_the_shape(position):
    backbone = build('mmpose', 'ResNet18')
    insert_plugins(backbone, [entry(position, type=Halving)])
    with pytest.raises(
        ValueError, match='plugin .*halving in ResNet .Halving. returns a t'
    ):
        backbone(images())


def test_a_plugin_that_changes_the_shape_of_a_module():
    backbone = build('mmpose', 'ResNet18')
    insert_plugins(
        backbone, [dict(cfg=dict(type='Halving'), modules='layer1.*')]
    )
    with pytest.raises(
        ValueError, match='plugin layer1.0.halving in ResNet .Halving. ret'
    ):
        backbone(images())


def test_a_network_is_no_plugin():
    with pytest.raises(ValueError, match='a plugin.* ResNet is a network'):
        insert_plugins(
            build('mmpose', 'ResNet18'),
            [entry(type='ResNet', depth=18, _scope_='mmpose')],
        )


def test_a_whole_model_is_refused():
    class Model(BaseModel):
        def forward(self, inputs):
            return inputs

    with pytest.raises(ValueError, match=r'Model is a whole model; .*backb'):
        insert_plugins(Model(), [entry()])


def test_stages_that_are_all_false(log):
    backbone = build('mmpose', 'ResNet18')
    assert insert_plugins(backbone, [dict(entry(), stages=[False] * 4)]) == []
    assert log == [
        (
            logging.WARNING,
            "plugins[0]['stages'] are all False: nothing is inserted",
        )
    ]


def test_a_sequential_is_not_blank():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    with pytest.raises(
        ValueError, match='takes no plugin output: it is a Sequential of sing'
    ):
        insert_plugins(layers, [entry('output')])
    nested = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=' it is a Sequential of single'):
        insert_plugins(nested, [entry('output')])


def test_a_backbone_that_does_not_run_runs_once(monkeypatch):
    runs = []

    def run(root, names):
        runs.append(names)
        raise ValueError('it does not run')

    monkeypatch.setattr('mmpsa.plugins.widths.find_widths', run)
    with pytest.raises(ValueError, match='it does not run'):
        insert_plugins(build('mmpose', 'ResNet18'), [entry('after_stage')])
    assert len(runs) == 1


def test_a_layer_that_only_containers_hold():
    """As a stage, too, the error names the entry."""
    layers = nn.Sequential(OrderedDict(layer1=nn.Conv2d(3, 4, 1)))
    for changes, where in (
        (dict(position='after_stage'), 'position'),
        (dict(modules='layer1'), 'modules'),
    ):
        with pytest.raises(
            ValueError,
            match=rf"plugins\[0\]\['{where}'\]: .*is only inside containers",
        ):
            insert_plugins(layers, [dict(cfg=dict(type='PSA'), **changes)])


@pytest.mark.parametrize('top', [True, False])
def test_the_initialisation_log(top, tmp_path, monkeypatch):
    """It names the plugin for each of its parameters, zeros too."""
    backbone = build(
        'mmpose', 'HRNet', plugins=[entry(type='PSA', identity_init=True)]
    )
    root = backbone
    if not top:

        class Model(BaseModel):
            def __init__(self):
                super().__init__()
                self.backbone = backbone

            def forward(self, inputs):
                return inputs

        root = Model()
    written = {}

    def dump(module):
        for name, p in module.named_parameters():
            written[name] = module._params_init_info[p]['init_info']

    monkeypatch.setattr('mmengine.model.BaseModule._dump_init_info', dump)
    root.init_weights()
    assert '_dump_init_info' not in vars(backbone)
    own = [info for name, info in written.items() if '.psa.' in name]
    assert len(own) > 100
    assert {*own} == {
        'Initialized by the plugin PolarizedSelfAttention itself '
    }
    assert any('NormalInit' in info for info in written.values())


@pytest.mark.parametrize(
    'cfg, level, said',
    [
        (dict(identity_init=True), logging.INFO, 'as the identity: the n'),
        ({}, logging.WARNING, 'not the identity: the network computes some'),
    ],
)
@pytest.mark.parametrize('way', ['load', 'pretrained', 'copied'])
def test_loading_weights_without_plugins(cfg, level, said, way, log, tmp_path):
    saved = upstream('mmpose', 'HRNet').state_dict()
    file = tmp_path / 'saved.pth'
    torch.save(saved, file)
    kwargs = {}
    if way == 'pretrained':
        kwargs['init_cfg'] = dict(type='Pretrained', checkpoint=str(file))
    backbone = build(
        'mmpose', 'HRNet', plugins=[entry(type='PSA', **cfg)], **kwargs
    )
    if way == 'copied':
        backbone = pickle.loads(pickle.dumps(copy.deepcopy(backbone)))
    log.clear()
    if way == 'pretrained':
        backbone.init_weights()
    else:
        backbone.load_state_dict(saved, strict=False)
    ((logged, line),) = log
    assert logged == level and said in line
    count = sum(type(m) is PSA for m in backbone.modules())
    assert f'no weights for {count} plugins in this HRNet' in line
    log.clear()
    backbone.load_state_dict(backbone.state_dict())
    assert not log


@MODELS.register_module()
class Half(Probe):
    """Named like a method of every module."""

    _abbr_ = 'half'


@pytest.mark.parametrize(
    'kind', [dict, int, 'builtins.dict', 'os.path.join', 'mmpsa.plugins']
)
def test_a_type_that_is_no_module(kind):
    message = (
        r"\['cfg'\]\['type'\] must be a class of modules or its name, got"
    )
    with pytest.raises(ValueError, match=message):
        build(
            'mmpose',
            'ResNet18',
            plugins=[dict(cfg=dict(type=kind), position='after_conv1')],
        )


@MODELS.register_module()
class Sampled(Probe):
    """Named like an attribute of ResNet's blocks, which may be None."""

    _abbr_ = 'downsample'


def test_a_name_that_is_none_is_taken():
    entry = dict(cfg=dict(type='Sampled'), position='after_conv1')
    backbone = build('mmpose', 'ResNet18')
    keys = [*backbone.state_dict()]
    with pytest.raises(ValueError, match='taken in layer1.0 by a NoneType'):
        insert_plugins(backbone, [entry])
    assert [*backbone.state_dict()] == keys


def test_modules_may_be_named_like_methods_of_dicts():
    net = nn.Module()
    net.keys, net.values = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    insert_plugins(
        net, [dict(cfg=dict(type='Probe'), modules=['keys', 'values'])]
    )
    net.values(net.keys(images()))
    assert [p.calls for p in probes(net)] == [1, 1]


def test_a_name_that_is_a_method_is_called_one():
    with pytest.raises(
        ValueError, match="name 'half' is taken in layer1.0 by a method; give"
    ):
        build(
            'mmpose',
            'ResNet18',
            plugins=[dict(cfg=dict(type='Half'), position='after_conv1')],
        )


def test_a_type_of_another_codebase():
    from mmdet.registry import MODELS as registry

    registry.register_module(name='OfMMDet', module=Probe, force=True)
    plugins = [dict(cfg=dict(type='OfMMDet'), position='after_conv1')]
    with pytest.raises(
        ValueError,
        match="under the scope 'mmpose'; it is in the registry of mmdet: "
        r"write cfg=dict\(type='OfMMDet', _scope_='mmdet'\)",
    ):
        build('mmpose', 'ResNet18', plugins=plugins)
    plugins[0]['cfg']['_scope_'] = 'mmdet'
    build('mmpose', 'ResNet18', plugins=plugins)


def test_a_module_without_modules_says_so():
    from mmpose.registry import MODELS as registry

    neck = dict(type='FeatureMapProcessor', _scope_='mmpose')
    plugins = [dict(cfg=dict(type='Probe'), modules='fpn_convs.*')]
    with pytest.raises(
        ValueError,
        match=r"'fpn_convs.\*' matches no module of this FeatureMapProcessor; "
        'it has no modules',
    ):
        registry.build(dict(neck, plugins=plugins))


def test_tokens_are_not_offered_a_width():
    entry = dict(
        cfg=dict(type='Probe'), modules='stages.0.blocks.0.ffn.layers.0'
    )
    with pytest.raises(
        ValueError,
        match='returns no N×C×H×W map .*; name another module, or, if',
    ):
        build('mmpose', 'SwinTransformer', plugins=[entry])


def test_a_block_of_ones_own_is_told_how_to_be_declared():
    class Block(nn.Module):
        def forward(self, x):
            return x

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(Block())

        def forward(self, x):
            return self.layer1(x)

    with pytest.raises(
        ValueError, match='are known .mmpsa.declare_block tells those of your'
    ):
        insert_plugins(
            Backbone(), [dict(cfg=dict(type='PSA'), position='after_3x3')]
        )


def test_a_width_may_be_numpys():
    neck = nn.Sequential(nn.Conv2d(3, 8, 1))
    root = nn.Module()
    root.inner = neck
    root.forward = neck.forward
    cfg = dict(type='PSA', in_channels=np.int64(8))
    insert_plugins(root, [dict(cfg=cfg, modules='inner')])


@MODELS.register_module()
class Rectified(Probe):
    """Its backward needs its output, which a block changes in place."""

    def forward(self, x):
        return super().forward(x).relu()


class SavesItsOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


@MODELS.register_module()
class Exponential(Probe):
    def forward(self, x):
        return SavesItsOutput.apply(super().forward(x))


@pytest.mark.parametrize('kind', ['Rectified', 'Exponential'])
def test_a_plugin_whose_output_is_changed_in_place(kind):
    backbone = build(
        'mmpose',
        'ResNet18',
        plugins=[dict(cfg=dict(type=kind), position='after_conv2')],
    )
    backbone(images())[-1].sum().backward()
    block = backbone.layer4[1]
    plugin = block.probe
    assert plugin.weight.grad.any()
    # the same gradient as without anything in place
    x = torch.rand(2, 64, 4, 4)
    block.eval()
    g = torch.autograd.grad(block(x).sum(), plugin.weight)[0]
    norm = copy.deepcopy(block.norm2)  # without the plugin
    y = norm(block.conv2(block.relu(block.norm1(block.conv1(x)))))
    out = (plugin(y) + x).relu()
    expected = torch.autograd.grad(out.sum(), plugin.weight)[0]
    torch.testing.assert_close(g, expected)
