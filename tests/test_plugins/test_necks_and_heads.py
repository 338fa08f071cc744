"""Plugins in necks and heads, from configs as a user writes them."""

import copy
import pickle
from importlib import import_module

import pytest
import torch
from helpers import Probe, randomise
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from test_docs import blocks

from mmpsa import PSA, insert_plugins

HEATMAP_HEAD = """
_base_ = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/' \\
    'td-hm_res50_8xb64-210e_coco-256x192.py'
custom_imports = dict(imports=['mmpsa'])
model = dict(
    backbone=dict(depth=18, init_cfg=None),
    head=dict(
        in_channels=512, deconv_out_channels=(16, 16),
        deconv_kernel_sizes=(4, 4),
        plugins=[dict(cfg=dict(type='PSA'), modules='deconv_layers.[14]')]))
"""
DECODE_HEAD = """
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py'
custom_imports = dict(imports=['mmpsa'])
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    pretrained=None,
    backbone=dict(depth=18),
    decode_head=dict(
        in_channels=512, channels=16,
        plugins=[dict(cfg=dict(type='PSA'), modules='convs.*')]),
    auxiliary_head=dict(
        in_channels=256, channels=16,
        plugins=[dict(cfg=dict(type='PSA', postfix='_aux'),
                      modules='convs.0')]))
"""
DETECTOR = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
custom_imports = dict(imports=['mmpsa'], allow_failed_imports=False)
model = dict(
    backbone=dict(init_cfg=None),
    neck=dict(
        out_channels=16,
        plugins=[dict(cfg=dict(type='PSA'), modules='fpn_convs.*')]),
    bbox_head=dict(
        in_channels=16, feat_channels=16,
        plugins=[dict(cfg=dict(type='PSA'),
                      modules=['cls_convs.*', 'reg_convs.3'])]))
"""
CASES = [
    (
        HEATMAP_HEAD,
        [f'head.after_module.deconv_layers.{i}.psa' for i in (1, 4)],
    ),
    (
        DECODE_HEAD,
        [
            'decode_head.convs.0.psa',
            'decode_head.convs.1.psa',
            'auxiliary_head.convs.0.psa_aux',
        ],
    ),
    (
        DETECTOR,
        [
            *(f'neck.fpn_convs.{i}.psa' for i in range(5)),
            *(f'bbox_head.cls_convs.{i}.psa' for i in range(4)),
            'bbox_head.reg_convs.3.psa',
        ],
    ),
]
IDS = ['heatmap head', 'decode head', 'FPN and detection head']


def build(text, tmp_path, plugins=True):
    path = tmp_path / 'config.py'
    path.write_text(text)
    cfg = Config.fromfile(path)
    if not plugins:
        for part in cfg.model.values():
            if isinstance(part, dict):
                part.pop('plugins', None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        model.init_weights()
    return model, cfg.default_scope


def batch_of(model, scope):
    torch.manual_seed(0)
    if scope == 'mmpose':
        from mmpose.testing import get_packed_inputs

        return get_packed_inputs(
            num_keypoints=model.head.out_channels,
            img_shape=(64, 64),
            input_size=(64, 64),
            heatmap_size=(8, 8),
        )
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, [[3, 64, 64], [3, 64, 64]])
    from mmseg.structures import SegDataSample

    labels = torch.randint(model.num_classes, (2, 1, 64, 64))
    return dict(
        inputs=list(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)),
        data_samples=[
            SegDataSample(gt_sem_seg=PixelData(data=x)) for x in labels
        ],
    )


@pytest.mark.parametrize('text, names', CASES, ids=IDS)
def test_trains_from_a_config(text, names, tmp_path):
    model, scope = build(text, tmp_path)
    modules = dict(model.named_modules())
    found = [n for n in modules if n.rpartition('.')[2].startswith('psa')]
    assert sorted(found) == sorted(names)
    for name in names:  # its own: heads give convolutions 0.01
        block = modules[name]
        weight = torch.cat(
            [getattr(block, k).weight.flatten() for k in ('ch_wv', 'sp_wq')]
        )
        assert abs(weight.std() / 0.001 - 1) < 8 / len(weight) ** 0.5, name

    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with DefaultScope.overwrite_default_scope(scope):
        batch = batch_of(model, scope)
        for _ in range(3):
            model.train().train_step(
                copy.deepcopy(batch), OptimWrapper(optimizer)
            )
    for name in names:
        trained = dict(modules[name].named_parameters(prefix=name))
        assert all(p.isfinite().all() for p in trained.values()), name
        # small maps leave some parameters as they were
        assert any(not p.equal(before[k]) for k, p in trained.items()), name


@pytest.mark.parametrize('text, names', CASES, ids=IDS)
def test_identity_start_is_the_model_without(text, names, tmp_path):
    """Predictions, which some heads make from ``self.forward()``."""
    plain, scope = build(text, tmp_path, plugins=False)
    randomise(plain)
    text = text.replace("type='PSA'", "type='PSA', identity_init=True")
    model, _ = build(text, tmp_path)
    missing, unexpected = model.load_state_dict(
        plain.state_dict(), strict=False
    )
    assert not unexpected
    assert {k for k in missing if not k.startswith(tuple(names))} == set()
    expected, found = (losses(each, scope) for each in (plain, model))
    torch.testing.assert_close(found, expected)
    for name in names:  # and each of them runs
        bias = model.get_submodule(name).sp_wv.bias
        torch.nn.init.constant_(bias, 4.0)
        assert not losses(model, scope).equal(expected), name
        torch.nn.init.zeros_(bias)


def losses(model, scope):
    """All losses of a batch, as one tensor."""
    with DefaultScope.overwrite_default_scope(scope), torch.no_grad():
        batch = model.data_preprocessor(batch_of(model, scope))
        found = model.eval()(**batch, mode='loss')
    return torch.stack(
        [
            torch.as_tensor(part).float()
            for key, value in sorted(found.items())
            if 'loss' in key
            for part in (value if isinstance(value, list) else [value])
        ]
    )


HEADS = {
    'mmpose': dict(
        type='HeatmapHead',
        in_channels=8,
        out_channels=3,
        deconv_out_channels=(8,),
        deconv_kernel_sizes=(4,),
    ),
    'mmseg': dict(
        type='FCNHead',
        in_channels=8,
        channels=8,
        num_classes=3,
        norm_cfg=dict(type='BN'),
    ),
}


@pytest.mark.parametrize(
    'scope, modules',
    [('mmpose', 'deconv_layers.1'), ('mmseg', 'convs.*.bn')],
)
def test_forward_called_past_the_hooks(scope, modules):
    """By losses and predictions, after a runner has replaced the norm."""
    registry = import_module(f'{scope}.registry').MODELS
    entry = dict(cfg=dict(type='Probe', factor=3.0), modules=modules)
    head = registry.build(dict(HEADS[scope], plugins=[entry], _scope_=scope))
    head.eval()
    x = [torch.rand(2, 8, 8, 8)]
    expected = head.forward(x)
    for again in (
        copy.deepcopy(head),
        pickle.loads(pickle.dumps(head)),
        revert_sync_batchnorm(convert_sync_batchnorm(copy.deepcopy(head))),
        fuse_conv_bn(copy.deepcopy(head)),
    ):
        again.eval()
        plugins = [m for m in again.modules() if isinstance(m, Probe)]
        for p in plugins:
            p.calls = 0
        for forward in (again.forward, again):
            torch.testing.assert_close(forward(x), expected)
        assert {p.calls for p in plugins} == {2}
        for p in plugins:
            torch.nn.init.zeros_(p.weight)
        assert not torch.allclose(again.forward(x), expected)
        torch.testing.assert_close(head.forward(x), expected)


def test_positions_are_for_backbones():
    from mmdet.registry import MODELS as registry

    cfg = dict(
        type='FPN',
        in_channels=[8, 16],
        out_channels=8,
        num_outs=2,
        _scope_='mmdet',
    )
    for position in ('after_conv1', 'output'):
        entry = dict(cfg=dict(type='PSA'), position=position)
        message = (
            r"plugins\[0\]\['position'\]: FPN is no backbone and has no "
            rf"positions, got '{position}'; use modules='…'; its modules are "
            r'lateral_convs, .* fpn_convs'
        )
        with pytest.raises(ValueError, match=message):
            registry.build(dict(cfg, plugins=[entry]))
        with pytest.raises(ValueError, match=message):
            insert_plugins(registry.build(dict(cfg)), [entry])


def test_losses_are_not_offered():
    pytest.importorskip('mmpose')
    from mmpose.registry import MODELS as registry

    cfg = dict(
        type='HeatmapHead',
        in_channels=8,
        out_channels=3,
        loss=dict(type='KeypointMSELoss'),
        _scope_='mmpose',
    )
    entry = dict(cfg=dict(type='PSA'), position='output')
    with pytest.raises(
        ValueError, match=r'its modules are deconv_layers, .*final_layer'
    ) as error:
        registry.build(dict(cfg, plugins=[entry]))
    assert 'loss_module' not in str(error.value)


@pytest.mark.parametrize(
    'codebase', ['mmpose', 'mmseg', 'mmdet', 'mmpretrain']
)
def test_every_neck_and_head_is_registered(codebase):
    """Each of upstream's is served by a class of ours that is its subclass."""
    pytest.importorskip(codebase)
    registry = import_module(f'{codebase}.registry').MODELS
    registry.import_from_location()
    folders = {
        'mmpose': ('necks', 'heads'),
        'mmseg': ('necks', 'decode_heads'),
        'mmdet': ('necks', 'dense_heads', 'roi_heads', 'seg_heads'),
        'mmpretrain': ('necks', 'heads'),
    }[codebase]
    found = 0
    for folder in folders:
        upstream = import_module(f'{codebase}.models.{folder}')
        for name, base in vars(upstream).items():
            if (
                isinstance(base, type)
                and name in registry.module_dict
                and issubclass(base, torch.nn.Module)
            ):
                cls = registry.get(name)
                assert cls is not base and issubclass(cls, base), name
                assert cls.__module__ == f'mmpsa.codebases.{codebase}'
                found += 1
    assert found > 10


PAGE = {
    'neck': ('mmseg', 2),
    'decode_head': ('mmseg', 2),
    'head': ('mmpose', 2),
    'bbox_head': ('mmdet', 8),
    'simcc_head': ('mmpose', 3),
}


@pytest.mark.parametrize('name', PAGE)
def test_examples_of_the_page(name):
    """Of a neck, and of heads of each kind: they are built."""
    namespace = {}
    (example,) = (
        text
        for _, text in blocks('docs/plugins.md', 'python')
        if 'bbox_head' in text
    )
    exec(example, namespace)
    codebase, count = PAGE[name]
    import_module(f'{codebase}.models')
    with DefaultScope.overwrite_default_scope(codebase):
        built = MODELS.build(namespace[name])
    plugins = [x for x in built.modules() if isinstance(x, PSA)]
    assert len(plugins) == count
