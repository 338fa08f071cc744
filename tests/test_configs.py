"""Every config builds and trains; most are their base plus plugins."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from helpers import REPO
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData

from mmpsa import PolarizedSelfAttention

ROOT = REPO / 'configs'
CONFIGS = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.rglob('*.py'))
    if '_base_' not in path.parts
]
SUFFIXES = {
    'psa-p': dict(type='PSA', layout='parallel'),
    'psa-s': dict(type='PSA', layout='sequential'),
    'psa-ch': dict(type='PSA', layout='channel'),
    'psa-sp': dict(type='PSA', layout='spatial'),
    'psa-p-official': dict(type='PSA', variant='official', layout='parallel'),
    'psa-s-official': dict(
        type='PSA', variant='official', layout='sequential'
    ),
    # of the paper's ablation
    'nl': dict(type='NonLocal2d'),
    'gc': dict(type='ContextBlock', ratio=1 / 16),
    'se': dict(type='timm_se'),
    'cbam': dict(type='timm_cbam'),
}


def has_plugins(name):
    return name.rpartition('_')[2] in SUFFIXES


PLUGIN_CONFIGS = [path for path in CONFIGS if has_plugins(path.stem)]
PSA_CONFIGS = [path for path in PLUGIN_CONFIGS if '_psa-' in path.stem]
LENGTH = re.compile(r'-(\d+)k(?=_)')
# The paper's schedule for segmentation; their bases have the baseline's.
LONGER = [path for path in PSA_CONFIGS if re.search('-(52|208)k_', str(path))]
INDEX = yaml.safe_load((REPO / 'model-index.yml').read_text())
ZOO = {
    model['Name']: (Path(metafile), model)
    for metafile in INDEX['Import']
    for model in yaml.safe_load((REPO / metafile).read_text())['Models']
}


def base_of(path):
    """The ``_base_`` of a config, as ``scope::path`` or absolute."""
    # Read, not run: a config may go on with what it inherits.
    (first, *_) = ast.parse((ROOT / path).read_text()).body
    assert first.targets[0].id == '_base_'
    base = ast.literal_eval(first.value)
    return base if '::' in base else str((ROOT / path).parent / base)


def pop_plugins(cfg):
    """Take the entries of every ``plugins=`` out of a model's config."""
    if isinstance(cfg, dict):
        own = cfg.pop('plugins', [])
        return sum(map(pop_plugins, cfg.values()), own)
    if isinstance(cfg, (list, tuple)):
        return sum(map(pop_plugins, cfg), [])
    return []


def pose_batch(model):
    """Two crops of 64 x 64, their heatmaps at a quarter of that.

    RTMPose's head has a fixed input: 256 x 192, and SimCC's labels.
    """
    from mmpose.testing import get_packed_inputs

    if hasattr(model.head, 'simcc_split_ratio'):
        return get_packed_inputs(num_keypoints=model.head.out_channels)
    return get_packed_inputs(
        num_keypoints=model.head.out_channels,
        img_shape=(64, 64),
        input_size=(64, 64),
        heatmap_size=(16, 16),
    )


def seg_batch(model):
    """Two pictures of 64 x 64 with labels at random."""
    from mmseg.structures import SegDataSample

    labels = torch.randint(model.num_classes, (2, 1, 64, 64))
    return dict(
        inputs=list(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)),
        data_samples=[
            SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels
        ],
    )


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_model_trains(path):
    cfg = Config.fromfile(ROOT / path)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)  # which it pads to
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    names = {
        type(block).__name__
        for block in model.modules()
        if isinstance(getattr(block, 'psa', None), PolarizedSelfAttention)
    }
    assert bool(names) == (path in PSA_CONFIGS)
    if path.stem.endswith('official'):
        assert names == {'BasicBlock'}
    if path.stem in ZOO:
        parameters = sum(x.numel() for x in model.parameters())
        assert ZOO[path.stem][1]['Metadata']['Parameters'] == parameters

    torch.manual_seed(0)
    batch = (seg_batch if cfg.default_scope == 'mmseg' else pose_batch)(model)
    batch = model.data_preprocessor(batch, training=True)
    loss, _ = model.parse_losses(model.train()(**batch, mode='loss'))
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        if '.psa.' in name:
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('path', PLUGIN_CONFIGS, ids=str)
def test_config_adds_what_its_name_says(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stem, _, suffix = path.stem.rpartition('_')
    base = base_of(path)
    if path in LONGER:
        return check_schedule(path, base)
    assert Path(base).stem == stem
    # Inherited, not read, for inheriting from a scope marks what it takes.
    Path('baseline.py').write_text(f'_base_ = {base!r}')
    baseline = Config.fromfile('baseline.py').to_dict()
    ours = Config.fromfile(ROOT / path).to_dict()

    imports = baseline.pop('custom_imports', dict(imports=[]))['imports']
    assert ours.pop('custom_imports') == dict(imports=[*imports, 'mmpsa'])
    (plugin,) = pop_plugins(ours['model'])
    cfg = dict(SUFFIXES[suffix])
    if '::' not in base or 'rtmpose' in stem:  # not the paper's
        cfg['identity_init'] = True
    if 'lite0' in stem:
        assert plugin == dict(cfg=cfg, modules='fpn_convs.*')
    else:
        stages = plugin.pop('stages', (True,) * 4)
        is_official = 'official' in suffix  # no Bottlenecks, as their code
        place = 'after_conv1' if is_official else 'after_3x3'
        assert plugin == dict(cfg=cfg, position=place)
        assert stages == (not is_official, True, True, True)
    assert ours == baseline


def check_schedule(path, base):
    """Else equal to its base: 30 % longer, 5,000 iterations of warm-up."""
    short, long = (Config.fromfile(ROOT / x).to_dict() for x in (base, path))
    before, after = (int(LENGTH.search(str(x))[1]) for x in (base, path))
    assert LENGTH.sub('', Path(base).stem) == LENGTH.sub('', path.stem)
    assert long['train_cfg'].pop('max_iters') == 1000 * after
    assert 10 * after == 13 * before
    assert short['train_cfg'].pop('max_iters') == 1000 * before
    warm_up, decay = long.pop('param_scheduler')
    assert warm_up == dict(
        type='LinearLR', start_factor=1e-3, end=5000, by_epoch=False
    )
    (theirs,) = short.pop('param_scheduler')
    theirs.pop('_scope_', None)
    assert theirs.pop('end') == 1000 * before
    assert decay == dict(theirs, begin=5000, end=1000 * after)
    assert long == short


@pytest.mark.parametrize(
    'path',
    [path for path in CONFIGS if 'lspet' in path.parts],
    ids=str,
)
def test_dumped_config_has_the_same_joints(path, tmp_path):
    from mmpose.datasets.datasets.utils import parse_pose_metainfo

    cfg = Config.fromfile(ROOT / path)
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    joints, same = (
        parse_pose_metainfo(x.train_dataloader.dataset.metainfo)
        for x in (cfg, dumped)
    )
    assert joints['flip_indices'] == same['flip_indices']
    assert joints['keypoint_id2name'] == same['keypoint_id2name']


def test_mim_finds_each_config_by_its_file_name():
    names = [path.name for path in CONFIGS]
    assert len(set(names)) == len(names)


def test_model_index_lists_every_experiment_once():
    assert INDEX['Import'] == sorted(
        str(path.relative_to(REPO)) for path in ROOT.rglob('metafile.yml')
    )
    listed = [
        model['Config']
        for name, (_, model) in ZOO.items()
        if has_plugins(name) or 'Weights' not in model  # a baseline has some
    ]
    assert sorted(listed) == [
        f'configs/{path}'
        for path in PLUGIN_CONFIGS
        if path.parts[0] != 'quickstart'
    ]


@pytest.mark.parametrize('name', ZOO)
def test_metafile_and_readme_agree(name):
    metafile, model = ZOO[name]
    config = Path(model['Config'])
    assert (config.stem, config.parent) == (name, metafile.parent)
    # a baseline has its figures in the rows of its PSA configs
    column, label = (2, name) if has_plugins(name) else (1, f'{name}_psa-p')
    (row,) = [
        line
        for line in (REPO / metafile.with_name('README.md'))
        .read_text()
        .splitlines()
        if line.startswith(f'| {label} |')
    ]
    cells = row.split(' | ')
    metadata = model['Metadata']
    assert cells[column] == f'{metadata["Parameters"] / 1e6:.2f}'
    assert cells[column + 3] == f'{metadata["FLOPs"] / 1e9:.2f}'


def test_mim_search_lists_the_zoo():
    import_module('mim_or_skip')
    commands = import_module('mim.commands')
    found = commands.get_model_info('mmpsa', to_dict=True)
    assert set(found) == set(ZOO)
    for name, fields in found.items():
        assert (REPO / fields['config']).is_file()
        assert fields['parameters'] > 0
        assert fields['flops'] == ZOO[name][1]['Metadata']['FLOPs']
        assert fields['paper'] == 'https://arxiv.org/abs/2107.00782'
