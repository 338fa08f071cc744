"""The README: its config builds what it says, its translation is complete."""

import json
import re
from importlib import import_module

import pytest
from helpers import REPO
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmpsa import PSA

CONFIGS = [
    (page, text)
    for page in ('README.md', 'docs/experiment.md')
    for text in re.findall(
        r'(?s)```python\n(_base_ .*?)```', (REPO / page).read_text()
    )
]
IN_BLOCKS = [(page, text) for page, text in CONFIGS if 'after_3x3' in text]
# The places of PSA in the other configs.
DECODERS = {
    'unet': [f'backbone.decoder.{i}' for i in range(4)],
    'td-hm_res50': [f'head.after_module.deconv_layers.{i}' for i in (2, 5, 8)],
    'rtmw-m': [f'neck.top_down_blocks.{i}.final_conv' for i in range(2)],
}
BACKBONES = {'mmpose': 'HRNet', 'mmseg': 'ResNetV1c'}


def build(text, folder):
    assert len(text.splitlines()) <= 8
    (folder / 'config.py').write_text(text)
    cfg = Config.fromfile(folder / 'config.py')
    codebase = cfg.default_scope
    init_default_scope(codebase)
    models = import_module(f'{codebase}.registry').MODELS
    return codebase, models.build(cfg.model)


@pytest.mark.parametrize('page, text', IN_BLOCKS)
def test_configs(tmp_path, page, text):
    codebase, model = build(text, tmp_path)
    assert type(model.backbone).__name__ == BACKBONES[codebase]
    blocks = [m for m in model.modules() if hasattr(m, 'downsample')]
    assert blocks and all(type(block.psa) is PSA for block in blocks)


@pytest.mark.parametrize('name', DECODERS)
def test_configs_of_decoders(tmp_path, name):
    (text,) = (text for _, text in CONFIGS if f'/{name}' in text)
    _, model = build(text, tmp_path)
    found = [k for k, m in model.named_modules() if type(m) is PSA]
    assert [each.rpartition('.')[0] for each in found] == DECODERS[name]


def test_there_are_configs_for_both_codebases():
    pages = [page for page, _ in IN_BLOCKS]
    assert pages == ['README.md', 'docs/experiment.md', 'docs/experiment.md']
    scopes = re.findall(r"_base_ = '(\w+)::", ' '.join(t for _, t in CONFIGS))
    assert set(scopes) == {*BACKBONES}
    assert len(CONFIGS) == len(IN_BLOCKS) + len(DECODERS)


@pytest.mark.parametrize(
    'part',
    [
        r'(?ms)^(?:<!--.*?)?```.*?^```',  # code
        r'`[^`\n]+`',  # code within a line, tables too
        r'\]\(([^)]+)\)',  # links and pictures
        r'(?m)^(#+|\|)',  # headings, rows of tables
    ],
)
def test_translation(part):
    """Has the same code, links and rows; the sentences may be in any order."""
    texts = []
    for name, other in (
        ('README.md', 'README_zh-CN.md'),
        ('README_zh-CN.md', 'README.md'),
    ):
        text = (REPO / name).read_text()
        assert f']({other})' in text
        texts.append(text.replace(f']({other})', '](twin)'))
    english, chinese = (sorted(re.findall(part, text)) for text in texts)
    assert english and chinese == english


def measured():
    """The figures of the READMEs' table of costs, row by row as they read."""
    rows = json.loads((REPO / 'docs/benchmark_cpu.json').read_text())['rows']
    ratio = {
        (row['contender'], row['where'], row['mode']): row['ratio']
        for row in rows
        if row['part'] == 'block' and 'ratio' in row
    }
    network = {
        row['contender']: row['ratio']
        for row in rows
        if row['mode'] == 'training step'
    }
    training, wide, small, other, published = [], [], [], [], []
    for (contender, where, mode), value in ratio.items():
        n, c, h, w = map(int, where.split('×'))
        megabytes = n * c * h * w * 4 / 2**20
        if contender in ('PSA-p', 'PSA-s'):
            if mode != 'forward':
                (training if c <= 256 else wide).append(value)
            else:
                is_small = c <= 256 and megabytes <= 3
                (small if is_small else other).append(value)
        if contender == 'PSA-p' and megabytes > 8:
            reference = ratio['PSA-p, reference', where, mode]
            published.append(reference / value)
    assert {f'{value:.1f}' for value in wide} == {f'{wide[0]:.1f}'}
    table = (REPO / 'configs/pose/coco/README.md').read_text()
    hrnet = r'(?m)^\| td-hm_hrnet-w32_8xb64-210e_coco-256x192_psa-p \|(.*)\|'
    (row,) = re.findall(hrnet, table)
    _, _, params, _, _, flops, _ = row.split('|')

    def ends(values):
        return [f'{f(values):.1f}' for f in (min, max)]

    return [
        ['256', *ends(training), '512', f'{wide[0]:.1f}'],
        ['256', '3', *ends(small), *ends(other)],
        [f'{f(published):.0f}' for f in (min, max)],
        [f'{network[name]:.2f}' for name in ('PSA-p', 'SE', 'CBAM')],
        [params.strip(), flops.strip()],
    ]


@pytest.mark.parametrize('page', ['README.md', 'README_zh-CN.md'])
def test_costs_are_those_measured(page):
    text = (REPO / page).read_text()
    cells = re.findall(r'(?m)^\|[^|]*\|([^|]*)\| \[.*(?:bench|configs/)', text)
    assert [re.findall(r'\d[\d.]*', cell) for cell in cells] == measured()
