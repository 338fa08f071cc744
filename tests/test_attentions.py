"""The page of attentions: one word changes them, and its table is right."""

import pytest
import torch
from helpers import images, load_script
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from test_docs import blocks

from mmpsa.compare.plan import read_plan
from mmpsa.timm_attention import PREFIX, SERVED

pytest.importorskip('timm')
pytest.importorskip('mmpose')

script = load_script('docs/attentions.py')
PAGE = script.PAGE.read_text()
(_, CONFIG), (_, PLAN) = blocks('docs/attentions.md', 'python')
WORDS = [
    kind
    for kind, time in script.times_in(PAGE).items()
    if time != '–' and kind not in script.NEEDED
]


def build(backbone):
    with DefaultScope.overwrite_default_scope('mmpose'):
        torch.manual_seed(0)
        return MODELS.build(backbone)


@pytest.mark.parametrize('word', WORDS)
def test_one_word(word, tmp_path):
    """Nothing else changes, and training starts from the baseline."""
    path = tmp_path / 'config.py'
    assert CONFIG.count('timm_cbam') == 1
    path.write_text(CONFIG.replace('timm_cbam', word))
    backbone = Config.fromfile(path).model.backbone
    backbone.update(depth=18, init_cfg=None, base_channels=16)
    model = build(dict(backbone))
    del backbone.plugins
    baseline = build(backbone)
    assert {*baseline.state_dict()} < {*model.state_dict()}
    for ours, theirs in zip(model(images()), baseline(images())):
        assert torch.equal(ours, theirs)
    sum(y.square().mean() for y in model(images())).backward()
    names = {name for name, _ in baseline.named_parameters()}
    assert any(
        parameter.grad is not None and parameter.grad.any()
        for name, parameter in model.named_parameters()
        if name not in names
    )


def test_every_served_name_is_in_the_table():
    kinds = [kind for kind in script.PAPERS if kind.startswith(PREFIX)]
    assert kinds == [PREFIX + name for name in SERVED]


def test_the_table_is_what_its_command_writes():
    """Times are not measured again."""
    times = script.times_in(PAGE)
    assert {*times} == {*script.PAPERS}
    assert script.write(PAGE, script.table(times)) == PAGE


def test_the_plan(tmp_path):
    path = tmp_path / 'plan.py'
    path.write_text(PLAN)
    find = load_script('tools/cli.py').config_file
    plan = read_plan(str(path), find)
    words = ['PSA', 'timm_se', 'timm_cbam', 'timm_coord']
    assert [*plan.configs] == ['none', *words]
    assert not any(map(plan.beyond_plugins, plan.configs))
