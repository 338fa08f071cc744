"""Every config builds its model; a PSA config is its baseline plus plugins."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmpsa import PolarizedSelfAttention

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = [
    path.relative_to(ROOT)
    for path in sorted(ROOT.rglob('*.py'))
    if '_base_' not in path.parts
]
PSA_CONFIGS = [path for path in CONFIGS if '_psa-' in path.stem]


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_model_builds(path):
    cfg = Config.fromfile(ROOT / path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    has_psa = any(
        isinstance(module, PolarizedSelfAttention)
        for module in model.backbone.modules()
    )
    assert has_psa == (path in PSA_CONFIGS)


@pytest.mark.parametrize('path', PSA_CONFIGS, ids=str)
def test_psa_is_all_that_a_psa_config_adds(path):
    stem, layout = path.stem.split('_psa-')
    baseline = Config.fromfile(ROOT / path.with_name(f'{stem}.py')).to_dict()
    psa = Config.fromfile(ROOT / path).to_dict()
    assert psa.pop('custom_imports') == dict(imports=['mmpsa'])
    (plugin,) = psa['model']['backbone'].pop('plugins')
    assert plugin['cfg']['layout'][0] == layout
    assert psa == baseline


def test_mim_finds_each_config_by_its_file_name():
    names = [path.name for path in CONFIGS]
    assert len(set(names)) == len(names)
