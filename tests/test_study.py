"""The study compares what it says: arms, their start, what logs give."""

import json
import math

import pytest
import torch
from mmcv.cnn.bricks import ContextBlock
from mmengine.registry import MODELS, DefaultScope

from mmpsa import PolarizedSelfAttention
from projects.study import report, runs
from projects.study.modules import SE

ARMS = [(task, arm) for task in runs.TASKS for arm in runs.ARMS]


def backbone_of(task, arm):
    """An arm's backbone as training starts with it."""
    cfg = runs.config_of(task, arm, seed=0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.manual_seed(0)
    model.init_weights()
    return model.backbone


def plugins_of(backbone):
    kinds = (PolarizedSelfAttention, SE, ContextBlock)
    found = [m for m in backbone.modules() if isinstance(m, kinds)]
    inside = {id(m) for plugin in found for m in plugin.modules()}
    return found, inside


@pytest.mark.parametrize(('task', 'arm'), ARMS)
def test_where_plugins_are_and_how_all_start(task, arm):
    backbone = backbone_of(task, arm)
    plugins, inside = plugins_of(backbone)
    assert len(plugins) == {'none': 0, 'psa-p_stages34': 4}.get(arm, 8)
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Conv2d) and id(module) not in inside:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            std = math.sqrt(2 / fan_out)
            assert module.weight.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize(('task', 'arm'), ARMS)
def test_identity_or_not_at_the_start(task, arm):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    base, backbone = backbone_of(task, 'none'), backbone_of(task, arm)
    for module in base.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # 0 at the end of each block at the start: that hides plugins
            torch.nn.init.ones_(module.weight)
    keys = backbone.load_state_dict(base.state_dict(), strict=False)
    assert not keys.unexpected_keys
    base.eval()
    backbone.eval()
    with torch.no_grad():
        same = all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-5)
            for a, b in zip(base(x), backbone(x))
        )
    usual = ('official', 'usual-start')
    assert same == (arm != 'se' and not arm.endswith(usual))


def test_usual_start():
    kaiming = {  # parameter: its fan in, or fan out in mmpose's SELayer
        'psa-p_usual-start': {'ch_wv': 256, 'ch_wz': 128, 'sp_wq': 256},
        'psa-p-official': {'conv_v_right': 256, 'conv_q_left': 256},
        'se': {'conv1.conv': 16, 'conv2.conv': 256},
    }
    for arm, parameters in kaiming.items():
        plugin = plugins_of(backbone_of('pose', arm))[0][-1]
        for name, fan in parameters.items():
            std = plugin.get_parameter(f'{name}.weight').std().item()
            assert std == pytest.approx(math.sqrt(2 / fan), rel=0.1), name
        if arm == 'psa-p_usual-start':
            assert (plugin.ln.weight == 1).all() and plugin.mask_scale == 1


def test_learning_rate_of_new_layers():
    from mmengine.optim import build_optim_wrapper

    cfg = runs.config_of('pose', 'psa-p_lr3', seed=0)
    backbone = backbone_of('pose', 'psa-p_lr3')
    wrapper = build_optim_wrapper(backbone, cfg.optim_wrapper)
    names = [name for name, _ in backbone.named_parameters()]
    rates = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert len(names) == len(rates)
    for name, rate in zip(names, rates):
        assert rate == pytest.approx(6e-3 if '.psa.' in name else 2e-3), name


def test_arms_of_the_shipped_configs():
    from mmengine.config import Config

    for task, base in runs.TASKS.items():
        for arm in ('psa-p', 'psa-s'):
            shipped = Config.fromfile(runs.REPO / f'{base}_{arm}.py')
            entry = dict(shipped.model.backbone.plugins[0])
            assert {**entry, 'cfg': dict(entry['cfg'])} == runs.ARMS[arm]


def test_plan_has_each_run_once():
    plan = runs.plan()
    assert len(set(plan)) == len(plan)
    names = {runs.name_of(*run) for run in plan}
    assert {path.stem for path in runs.LOGS.iterdir()} <= names


def test_read_takes_the_last_line_of_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'LOGS', tmp_path)
    assert report.read('seg', 'none', 0) is None
    lines = [
        dict(step=50, loss=3.0, time=1.0),
        dict(step=100, loss=2.0, time=1.0),
        dict(step=100, mIoU=30.0),
        dict(step=100, loss=1.0, time=2.0),  # resumed
        dict(step=100, mIoU=40.0),
    ]
    path = tmp_path / 'seg_none_seed0.json'
    path.write_text('\n'.join(map(json.dumps, lines)))
    training, validation = report.read('seg', 'none', 0)
    assert [x['loss'] for x in training] == [3.0, 1.0]
    assert validation == [dict(step=100, mIoU=40.0)]
    assert report.scores('seg', 'none', [0, 1]) == [40.0]


def test_document_shows_what_the_logs_say():
    text = report.DOCUMENT.read_text()
    assert report.fill(text, report.tables()) == text
