"""The masks of PSA: recorded, drawn, and sent to a run's backends."""

import random
import subprocess
import sys
from importlib import import_module

import cv2
import numpy as np
import pytest
import torch
from helpers import REPO, draw_weights, run_script
from helpers import build as build_backbone
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import (
    METRICS,
    MODELS,
    VISBACKENDS,
    init_default_scope,
)
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend
from torch import nn

from dev.small_backbones import BACKBONES
from mmpsa.visualization import (
    PSAVisualizationHook,
    draw_masks,
    find_plugins,
    record_masks,
)

TOOL = 'tools/visualize_psa.py'
NORMALISED = dict(mean=[123.0, 116.0, 103.0], std=[58.0, 57.0, 59.0])


@MODELS.register_module()
class Mean(BaseModel):
    """A backbone with plugins, and one number as its output."""

    def __init__(self, backbone, data_preprocessor):
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(backbone)
        self.dropout = nn.Dropout()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.dropout(self.backbone(inputs)[-1]).mean()
        return dict(loss=(out - 1).pow(2)) if mode == 'loss' else [out]


def model_cfg(*plugins, name='ResNet18', **preprocessor):
    """Of a model with a PSA after conv1 for each dict of arguments."""
    plugins = [
        dict(cfg=dict(type='PSA', **cfg), position='after_conv1')
        for cfg in plugins
    ]
    preprocessor.setdefault('type', 'ImgDataPreprocessor')
    backbone = dict(BACKBONES['mmpose'][name], plugins=plugins)
    return dict(
        type='Mean',
        backbone=dict(backbone, _scope_='mmpose'),
        data_preprocessor=preprocessor,
    )


def build(*plugins, **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(model_cfg(*plugins, **kwargs))
    return draw_weights(model, 0.1).eval()


def pictures(count=2, size=64, channels=3):
    """As a loader gives them: BGR, uint8."""
    generator = torch.Generator().manual_seed(0)
    shape = count, channels, size, size
    return list(
        torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    )


def record_of(model, inputs):
    with record_masks(model) as record:
        model.val_step(dict(inputs=inputs))
    return record


class TestFind:
    def test_last_of_each_stage(self):
        names = [f'backbone.layer{n}.1.psa' for n in (1, 2, 3, 4)]
        assert list(find_plugins(build({}))) == names

    def test_last_of_each_branch(self):
        names = ['backbone.layer1.0.psa'] + [
            f'backbone.stage{n}.0.branches.{branch}.0.psa'
            for n in (2, 3, 4)
            for branch in range(n)
        ]
        assert list(find_plugins(build({}, name='HRNet'))) == names

    def test_each_plugin(self):
        model = build({}, dict(layout='channel', postfix='_b'))
        assert [name for name in find_plugins(model) if 'layer2' in name] == [
            'backbone.layer2.1.psa',
            'backbone.layer2.1.psa_b',
        ]

    @pytest.mark.parametrize(
        'codebase, name, position, names',
        [
            ('mmpose', 'HRNet', 'output', ['output.0.psa']),
            (
                'mmpose',
                'HRNet',
                'after_stage',
                ['layer1.0.after_stage.0.psa']
                + [f'stage2.0.after_stage.{n}.psa' for n in range(2)]
                + [f'stage3.0.after_stage.{n}.psa' for n in range(3)]
                + ['stage4.0.after_stage.0.psa'],
            ),
            (
                'mmseg',
                'VisionTransformer',
                'output',
                ['output.0.psa', 'output.1.psa'],
            ),
            (
                'mmdet',
                'HourglassNet',
                'after_stage',
                [f'hourglass_modules.{n}.after_stage.0.psa' for n in range(2)],
            ),
        ],
    )
    def test_each_map(self, codebase, name, position, names):
        plugins = [dict(cfg=dict(type='PSA'), position=position)]
        model = nn.Module()
        model.backbone = build_backbone(codebase, name, plugins=plugins)
        assert list(find_plugins(model)) == [f'backbone.{x}' for x in names]

    def test_modules_by_name(self):
        """Each in the stage of the module that it follows."""
        modules = ['layer2', 'layer3.0.bn1', 'layer3.1', 'conv1']
        plugins = [dict(cfg=dict(type='PSA'), modules=modules)]
        model = nn.Module()
        model.backbone = build_backbone('mmpose', 'ResNet18', plugins=plugins)
        assert list(find_plugins(model)) == [
            'backbone.layer3.1.psa',
            'backbone.after_module.layer2.psa',
            'backbone.after_module.conv1.psa',
        ]

    def test_in_a_neck_and_a_head(self):
        plugin = dict(cfg=dict(type='PSA'), modules='fpn_convs.*')
        model = build({})
        model.neck = MODELS.build(
            dict(
                type='mmseg.FPN',
                in_channels=[8, 16],
                out_channels=4,
                num_outs=2,
                plugins=[plugin],
            )
        )
        names = [*find_plugins(model)]
        assert names[:4] == [f'backbone.layer{n}.1.psa' for n in (1, 2, 3, 4)]
        assert names[4:] == [f'neck.fpn_convs.{n}.psa' for n in (0, 1)]

    def test_inside_wrappers(self):
        model = build({})
        wrapped = nn.Module()
        wrapped.module = nn.DataParallel(model)
        assert find_plugins(wrapped) == find_plugins(model)

    def test_none(self):
        with pytest.raises(ValueError, match='Mean has no plugins'):
            find_plugins(build())


class TestRecord:
    @pytest.mark.parametrize(
        'layout', ['parallel', 'sequential', 'channel', 'spatial']
    )
    def test_masks_of_the_first_sample(self, layout):
        model, inputs = build(dict(layout=layout)), {}
        expected = model.val_step(dict(inputs=pictures()))
        blocks = find_plugins(model)
        handles = [
            block.register_forward_hook(
                lambda block, args, out: inputs.update({block: args[0]})
            )
            for block in blocks.values()
        ]
        record = record_of(model, pictures())
        assert list(record.masks) == list(blocks)
        for name, block in blocks.items():
            recorded = record.masks[name]
            assert recorded.block is block
            assert recorded.shape == inputs[block].shape[1:]
            for mask, all_masks in zip(
                recorded[2:], block.masks(inputs[block])
            ):
                if all_masks is None:
                    assert mask is None
                else:
                    np.testing.assert_allclose(
                        mask, all_masks[0].detach(), rtol=1e-4, atol=1e-5
                    )
        for handle in handles:
            handle.remove()
        assert model.val_step(dict(inputs=pictures())) == expected
        assert not model.backbone._forward_pre_hooks
        assert not any(block._forward_hooks for block in blocks.values())

    def test_first_run_alone(self):
        model = build({})
        first = record_of(model, pictures())
        with record_masks(model) as record:
            model.val_step(dict(inputs=pictures()))
            model.val_step(dict(inputs=pictures(1, 96)))
        np.testing.assert_array_equal(record.image, first.image)
        for name, masks in first.masks.items():
            assert record.masks[name].shape == masks.shape

    def test_nothing_is_left_after_an_error(self):
        model = build({})
        with pytest.raises(TypeError), record_masks(model):
            model.val_step(dict(inputs=None))
        assert not model.backbone._forward_pre_hooks

    @pytest.mark.parametrize(
        'preprocessor',
        [
            {},
            NORMALISED,
            dict(NORMALISED, bgr_to_rgb=True),
            dict(
                NORMALISED, bgr_to_rgb=True, type='mmseg.SegDataPreProcessor'
            ),
            dict(type='mmseg.SegDataPreProcessor'),
        ],
        ids=str,
    )
    def test_picture(self, preprocessor):
        """What was loaded, whatever the network gets."""
        import_module('mmseg.models')
        record = record_of(build({}, **preprocessor), pictures())
        loaded = pictures()[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(record.image, loaded[..., ::-1])

    def test_grey_picture(self):
        model = build({}, mean=[99.0], std=[9.0])
        model.backbone.conv1 = nn.Conv2d(1, 8, 3, 2, 1)
        grey = pictures(channels=1)
        image = record_of(model, grey).image
        np.testing.assert_array_equal(image, np.stack([grey[0][0]] * 3, 2))


@MODELS.register_module()
class Doubled(nn.Module):
    """Works in place."""

    def __init__(self, in_channels):
        super().__init__()

    def forward(self, x):
        return x.mul_(2)


@MODELS.register_module()
class Halves(Doubled):
    """Halves the second half of the channels, and says so."""

    def masks(self, x):
        mask = torch.ones_like(x[:, :, :1, :1])
        mask[:, mask.shape[1] // 2 :] = 0.5
        return mask, None

    def forward(self, x):
        return x * self.masks(x)[0]


def model_of(kind, **more):
    model = model_cfg()
    entry = dict(cfg=dict(type=kind), position='after_conv1', **more)
    model['backbone']['plugins'] = [entry]
    torch.manual_seed(0)
    return MODELS.build(model).eval()


class TestAnyPlugin:
    NAMES = [f'backbone.layer{n}.1' for n in (1, 2, 3, 4)]

    def masks_of(self, model):
        masks = record_of(model, pictures()).masks
        assert [name.rpartition('.')[0] for name in masks] == self.NAMES
        return masks

    @pytest.mark.parametrize(
        'kind, more, expected',
        [('Doubled', {}, 2), ('Doubled', dict(identity_init=True), 1)],
    )
    def test_gain(self, kind, more, expected):
        for masks in self.masks_of(model_of(kind, **more)).values():
            channels, height, width = masks.shape
            assert masks.kind == 'gain'
            assert masks.channel.shape == (channels, 1, 1)
            assert masks.spatial.shape == (1, height, width)
            for gain in masks[2:]:
                known = gain[~np.isnan(gain)]
                assert known.size > gain.size / 2
                np.testing.assert_allclose(known, expected, rtol=1e-5)

    def test_gain_is_of_its_position_and_channel(self):
        model = model_of('timm_cbam')
        seen = {}
        plugin = model.backbone.layer2[1].cbam
        handle = plugin.register_forward_hook(
            lambda plugin, args, output: seen.update(x=args[0], y=output)
        )
        masks = self.masks_of(model)['backbone.layer2.1.cbam']
        handle.remove()
        x, y = (seen[key][0].detach().abs() for key in 'xy')
        for gain, over in ((masks.channel, (1, 2)), (masks.spatial, 0)):
            expected = y.mean(over) / x.mean(over)
            np.testing.assert_allclose(gain.squeeze(), expected, rtol=1e-4)

    def test_no_gain_where_the_input_is_zero(self):
        model = model_of('Doubled')
        nn.init.zeros_(model.backbone.layer1[1].bn1.weight)
        model.backbone.layer1[1].bn1.bias.data[0] = -1
        model.backbone.layer1[1].bn1.bias.data[1:] = 1
        record = record_of(model, pictures())
        gain = record.masks['backbone.layer1.1.doubled'].channel.ravel()
        assert np.isnan(gain[0]) and (gain[1:] == 2).all()
        draw_masks(record)

    def test_masks_of_its_own(self):
        record = record_of(model_of('Halves'), pictures())
        for masks in record.masks.values():
            assert masks.kind == 'mask' and masks.spatial is None
            half = masks.channel.size // 2
            assert masks.channel.ravel().tolist() == [1] * half + [0.5] * half
        assert draw_masks(record).shape[0] > 4 * 200


class TestDraw:
    @pytest.mark.parametrize(
        'cfg',
        [
            dict(layout='channel'),
            dict(layout='spatial'),
            dict(layout='sequential', identity_init=True),
            dict(variant='official'),
        ],
        ids=str,
    )
    def test_every_layout(self, cfg):
        picture = draw_masks(record_of(build(cfg), pictures()))
        assert picture.dtype == np.uint8
        assert picture.ndim == 3 and picture.shape[2] == 3
        assert picture.shape[0] > 4 * 200

    @pytest.mark.parametrize('kind', ['channel', 'spatial'])
    def test_each_mask_in_its_place(self, kind):
        record = record_of(build({}), pictures())
        before = draw_masks(record)
        name = 'backbone.layer2.1.psa'
        mask = getattr(record.masks[name], kind).copy()
        # between the extremes, which are written beside it
        at = np.argsort(mask.ravel())[mask.size // 2]
        mask.ravel()[at] += 0.4 * (mask.max() - mask.ravel()[at])
        record.masks[name] = record.masks[name]._replace(**{kind: mask})
        ys, xs = np.nonzero((draw_masks(record) != before).any(2))
        height, width = before.shape[:2]
        assert 2 / 5 < ys.min() / height and ys.max() / height < 3 / 5
        assert xs.size and (xs.max() < width / 3) == (kind == 'spatial')

    def test_model_that_has_not_run(self):
        with record_masks(build({})) as record:
            pass
        with pytest.raises(ValueError, match='inside record_masks'):
            draw_masks(record)


@VISBACKENDS.register_module()
class ListBackend(LocalVisBackend):
    """Keeps what it is given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.images = []

    def add_image(self, name, image, step=0, **kwargs):
        self.images.append((name, step, image))


@METRICS.register_module()
class Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(nothing=len(results))


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return dict(inputs=pictures(12)[index])


def make_runner(work_dir, hooks, model):
    def loader():
        return dict(
            batch_size=4,
            dataset=Pictures(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        )

    loop = dict(dataloader=loader(), evaluator=dict(type='Nothing'))
    return Runner(
        model,
        str(work_dir),
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-2)),
        **{
            f'{mode}_{key}': value
            for mode in ('val', 'test')
            for key, value in dict(loop, cfg={}).items()
        },
        custom_hooks=[dict(type='EMAHook', momentum=0.5), *hooks],
        visualizer=dict(
            type='Visualizer',
            vis_backends=[
                dict(type='ListBackend'),
                dict(type='LocalVisBackend'),
            ],
            name=str(work_dir),
        ),
        randomness=dict(seed=0),
        # the hook is in mmengine's registry, which every scope falls back to
        default_scope='mmpose',
        experiment_name=str(work_dir).replace('/', '-'),
    )


HOOK = dict(type='PSAVisualizationHook', interval=2)


class TestHook:
    def test_training_and_test(self, tmp_path):
        """Images in every backend, and the same training as without."""
        ends = []
        for hooks in ([], [HOOK]):
            work_dir = tmp_path / str(len(hooks))
            runner = make_runner(work_dir, hooks, model_cfg({}, **NORMALISED))
            runner.train()
            generators = (
                torch.get_rng_state().tolist(),
                np.random.get_state()[1].tolist(),
                random.getstate(),
            )
            ends.append((runner.model.state_dict(), generators))
        (without, generators), (with_hook, generators_with_hook) = ends
        assert generators == generators_with_hook
        for key, value in without.items():
            assert torch.equal(value, with_hook[key]), key
        assert not runner.model.backbone._forward_pre_hooks

        drawn = runner.visualizer.get_backend('ListBackend').images
        assert [entry[:2] for entry in drawn] == [
            ('val_psa_0', 3),
            ('val_psa_2', 3),
            ('val_psa_0', 6),
            ('val_psa_2', 6),
        ]
        name, step, picture = drawn[-1]
        (file,) = work_dir.rglob(f'{name}_{step}.png')
        np.testing.assert_array_equal(
            cv2.imread(str(file))[..., ::-1], picture
        )

        # validated with the averaged weights
        ema = next(x for x in runner.hooks if isinstance(x, EMAHook))
        last_batch = pictures(12)[8:]
        averaged = record_of(ema.ema_model.module.eval(), last_batch)
        np.testing.assert_array_equal(draw_masks(averaged), picture)
        plain = record_of(runner.model.eval(), last_batch)
        assert not np.array_equal(draw_masks(plain), picture)

        runner.test()
        assert [entry[0] for entry in drawn[4:]] == [
            'test_psa_0',
            'test_psa_2',
        ]

    def test_registration_loads_no_matplotlib(self):
        code = (
            'import mmpsa, sys\n'
            'from mmengine.registry import HOOKS\n'
            "print('PSAVisualizationHook' in HOOKS.module_dict, "
            "'matplotlib' in sys.modules)"
        )
        printed = subprocess.check_output(
            [sys.executable, '-c', code], text=True
        )
        assert printed.splitlines()[-1] == 'True False'

    def test_model_without_psa(self, tmp_path):
        runner = make_runner(tmp_path, [HOOK], model_cfg())
        with pytest.raises(ValueError, match='no plugins'):
            runner.train()
        assert runner.iter == 0

    @pytest.mark.parametrize('interval', [0, -1, 1.5, None])
    def test_interval(self, interval):
        with pytest.raises(ValueError, match=f'interval.*{interval}'):
            PSAVisualizationHook(interval)


CONFIGS = {
    'mmpose': 'td-hm_res18-w32_1xb16-5e_figures-64x64',
    'mmseg': 'fcn_r18-w32_1xb16-250_figures-128x128',
}


class TestTool:
    @pytest.fixture
    def run(self, tmp_path):
        """Draw for a picture of 90×60, with untrained weights."""

        def run(codebase, suffix='_psa-s'):
            path = REPO / f'configs/quickstart/{CONFIGS[codebase]}{suffix}.py'
            cfg = Config.fromfile(path)
            apis = import_module(f'{codebase}.apis')
            init_default_scope(codebase)
            meta = dict(dataset_meta=dict(classes=(), palette=()))
            if codebase == 'mmpose':
                datasets = import_module('mmpose.datasets')
                meta['dataset_meta'] = datasets.CrowdPoseDataset(
                    lazy_init=True
                ).metainfo
            weights = apis.init_model(cfg, device='cpu').state_dict()
            checkpoint = tmp_path / 'weights.pth'
            torch.save(dict(state_dict=weights, meta=meta), checkpoint)
            image, out = tmp_path / 'image.jpg', tmp_path / 'new/out.png'
            cv2.imwrite(str(image), np.full((60, 90, 3), 50, np.uint8))
            argv = [path, checkpoint, image, '--out', out]
            run_script(TOOL, *argv)
            return cv2.imread(str(out))

        return run

    @pytest.mark.parametrize('codebase', CONFIGS)
    def test_draws(self, run, codebase):
        picture = run(codebase)
        assert picture.shape[0] > 4 * 200

    def test_model_without_psa(self, run):
        with pytest.raises(ValueError, match='no plugins'):
            run('mmseg', suffix='')

    def test_other_codebase(self, tmp_path):
        config, image = tmp_path / 'config.py', tmp_path / 'x.jpg'
        config.write_text("default_scope = 'mmdet'")
        cv2.imwrite(str(image), np.zeros((9, 9, 3), np.uint8))
        with pytest.raises(ValueError, match="default_scope.*'mmdet'"):
            run_script(TOOL, config, 'x.pth', image, '--out', 'x.png')

    def test_missing_image(self, tmp_path, capsys):
        image = tmp_path / 'x.jpg'
        for reason in ("there is no file '{}'", "'{}' is no image"):
            with pytest.raises(SystemExit):
                run_script(
                    TOOL, CONFIGS['mmseg'], 'x.pth', image, '--out', 'x.png'
                )
            last = capsys.readouterr().err.splitlines()[-1]
            assert last.endswith(f'image: {reason.format(image)}')
            image.write_text('<html>')
