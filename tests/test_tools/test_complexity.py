"""The complexity table: every multiply-add of PSA is counted."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from helpers import REPO, run_script
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope

from mmpsa import PolarizedSelfAttention
from mmpsa.complexity import complexity_of

SMALL = 'configs/pose/lspet/td-hm_hrnet-w16s_1xb32-10e_lspet-128x96_psa-{}.py'


def config(layout):
    return Config.fromfile(REPO / SMALL.format(layout))


def block_sizes(cfg):
    """C and P of every block, as the backbone runs on one picture."""
    with DefaultScope.overwrite_default_scope('mmpose'):
        backbone = MODELS.build(cfg.model.backbone)
    backbone.eval()
    sizes = []
    for module in backbone.modules():
        if isinstance(module, PolarizedSelfAttention):
            module.register_forward_hook(
                lambda block, inputs, output: sizes.append(
                    (block.in_channels, output[0, 0].numel())
                )
            )
    with torch.no_grad():
        backbone(torch.rand(1, 3, 128, 96))
    return sizes


def collapsed(c, p):
    # two logits and two poolings; four matrices; a bias; the LayerNorm
    return 4 * c * p + 4 * c * (c // 2) + c // 2 + 5 * c


def reference(c, p):
    # two values and a query, one logit; two products; Wz; the LayerNorm
    m = c // 2
    return 3 * c * m * p + c * p + 2 * m * p + m * c + 5 * c


@pytest.mark.parametrize('layout', ['p', 's'])
@pytest.mark.parametrize('count', [collapsed, reference])
def test_multiply_adds_of_psa(layout, count):
    """Operators unknown to the analysis would count as nothing."""
    cfg = config(layout)
    sizes = block_sizes(cfg)
    params, flops = complexity_of(cfg, reference=count is reference)
    del cfg.model.backbone['plugins']
    base_params, base_flops = complexity_of(cfg)
    assert flops - base_flops == sum(count(c, p) for c, p in sizes)
    # three matrices and Wz, with biases; one query; the LayerNorm
    assert params - base_params == sum(
        4 * c * (c // 2) + 3 * (c // 2) + c + (c + 1) + 2 * c for c, _ in sizes
    )


def test_metafile_has_measured_figures():
    folder = REPO / 'configs/pose/coco'
    models = yaml.safe_load((folder / 'metafile.yml').read_text())['Models']
    (model,) = [model for model in models if model['Name'].endswith('_psa-ch')]
    cfg = Config.fromfile(REPO / model['Config'])
    metadata = model['Metadata']
    figures = metadata['Parameters'], metadata['FLOPs']
    assert complexity_of(cfg) == figures


@pytest.mark.parametrize('codec', [{}, dict(codec=[dict(type='UDP')])])
def test_config_without_a_size_is_refused(codec):
    with pytest.raises(ValueError, match='must have crop_size .* or codec'):
        complexity_of(Config(dict(codec, model=dict(type='X'))))


@pytest.mark.parametrize(
    'name, flops',
    [
        # its own table says 1.82 × 10⁹ at 224 × 224
        (
            'mmpretrain::resnet/resnet18_8xb32_in1k.py',
            1.82e9 * (64 / 224) ** 2,
        ),
        ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', None),
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', None),
    ],
)
def test_a_batch_gives_the_size(name, flops):
    """Of models whose configs do not: classifiers and detectors."""
    codebase = name.partition('::')[0]
    pytest.importorskip(codebase)
    cfg = get_config(name)
    cfg.model.backbone.init_cfg = None
    batch = dict(inputs=torch.rand(2, 3, 64, 64), data_samples=None)
    if codebase == 'mmdet':
        testing = import_module('mmdet.testing')
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg.model.copy())
        packed = testing.demo_mm_inputs(2, [[3, 64, 64]] * 2)
        batch = model.data_preprocessor(packed, False)
    params, found = complexity_of(cfg, batch=batch)
    assert params > 1e7 and found > 1e8
    assert flops is None or found == pytest.approx(flops, rel=0.05)
    with pytest.raises(ValueError, match='must have crop_size'):
        complexity_of(cfg)


def test_table(capsys):
    path = str(REPO / SMALL.format('p'))
    run_script('tools/complexity.py', path)
    head, rule, row = capsys.readouterr().out.splitlines()
    assert head.count('|') == rule.count('|') == row.count('|')
    params, flops = complexity_of(config('p'))
    cells = row.strip('| ').split(' | ')
    assert cells[0] == Path(path).stem
    assert cells[2] == f'{params / 1e6:.2f}'
    assert cells[5] == f'{flops / 1e9:.2f}'


def test_config_without_plugins_is_refused(capsys):
    """Also by its name alone, as all shipped configs."""
    name = Path(SMALL.format('p').replace('_psa-p', '')).stem
    with pytest.raises(SystemExit):
        run_script('tools/complexity.py', name)
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.endswith(
        f'{name}.py: nothing in its model has plugins\n'
    )


def test_parts_of_configs_have_no_name(capsys):
    with pytest.raises(SystemExit):
        run_script('tools/complexity.py', 'lspet')  # data sets, in _base_
    assert "there is no file 'lspet'" in capsys.readouterr().err


@pytest.mark.parametrize('ending', ['', '.py'])
def test_missing_config(ending, capsys):
    name = 'td-hm_res18-w32_1xb32-10e_lspet-128x96_psa'
    with pytest.raises(SystemExit):
        run_script('tools/complexity.py', name + ending)
    assert re.search(
        f"argument CONFIG: there is no file '{name}{ending}', .*"
        f'names like it: .*{name}-p',
        capsys.readouterr().err,
    )
