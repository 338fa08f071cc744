"""The published checkpoints are what their metafiles say."""

import json

import numpy as np
import pytest
from helpers import REPO, load_script
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint

zoo_check = load_script('dev/zoo_check.py')
MODELS_BY_NAME = {model['Name']: model for model in zoo_check.published()}


@pytest.mark.parametrize('name', MODELS_BY_NAME)
def test_checkpoint(name, monkeypatch):
    monkeypatch.setenv('MMPSA_ZOO', str(REPO / 'checkpoints'))
    entry = MODELS_BY_NAME[name]
    cfg = Config.fromfile(REPO / entry['Config'])
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    checkpoint = load_checkpoint(model, entry['Weights'], strict=True)
    (result,) = entry['Results']
    assert checkpoint['meta']['metrics'] == result['Metrics']
    assert all(tensor.isfinite().all() for tensor in model.parameters())

    # what one of the study's runs measured at its end
    runs = json.loads((REPO / entry['Training Log']).read_text())['runs']
    (run,) = [
        run
        for run in runs
        if not zoo_check.differences(
            result['Metrics'], run['evaluations'][-1]['metrics']
        )
    ]
    _, *layout = name.split('_psa-')
    assert run['arm'].startswith(f'psa-{layout[0]}' if layout else 'none')


def test_inferencer_draws_in_the_colours_of_the_data(monkeypatch):
    """The checkpoint has them: mmseg need not know the data set."""
    from mmseg.apis import MMSegInferencer

    monkeypatch.setenv('MMPSA_ZOO', str(REPO / 'checkpoints'))
    entry = MODELS_BY_NAME['fcn_lite0-fpn_1xb8-600_camvid-180x240_psa-p']
    inferencer = MMSegInferencer(
        str(REPO / entry['Config']), entry['Weights'], device='cpu'
    )
    image = np.random.default_rng(0).integers(256, size=(90, 120, 3))
    result = inferencer([image.astype(np.uint8)], return_vis=True)
    meta = inferencer.visualizer.dataset_meta
    cfg = inferencer.cfg.test_dataloader.dataset.metainfo
    assert list(meta['classes']) == list(cfg.classes)
    assert meta['palette'] == cfg.palette
    assert result['predictions'].max() < len(cfg.classes)


def test_sizes():
    files = list((REPO / 'checkpoints').glob('*.pth'))
    assert len(files) == len(MODELS_BY_NAME)
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) <= 40e6 and sum(sizes) <= 160e6


def test_differences():
    measured = dict(mIoU=41.05, aAcc=83.4)
    assert zoo_check.differences(dict(mIoU=41.06), measured) == []
    stated = dict(mIoU=41.2, PCK=0.5)
    wrong, missing = zoo_check.differences(stated, measured)
    assert wrong == 'mIoU: stated 41.2, measured 41.05'
    assert missing == 'PCK: stated 0.5, measured None'
