"""The study: what its plans compare, and pages that say what results say."""

import copy

import pytest
import timm
import torch
from helpers import load_script
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from timm.layers import SEModule

from mmpsa import PolarizedSelfAttention
from mmpsa.compare.plan import read_plan
from mmpsa.compare.results import read, write
from mmpsa.compare.runs import Runs
from projects.study import report
from projects.study.modules import KaimingPSA, fast_on_cpu

PLANS = {
    path.stem: read_plan(str(path), load_script('tools/cli.py').config_file)
    for path in sorted(report.STUDY.glob('light_*.py'))
}
ARMS = [(plan, arm) for plan in PLANS for arm in PLANS[plan].configs]
RESULTS = sorted(report.STUDY.glob('*/results.json'))


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A file with weights for the pretrained backbone."""
    path = tmp_path_factory.mktemp('pretrained') / 'weights.pth'
    torch.manual_seed(1)
    model = timm.create_model('tf_efficientnet_lite0')
    weights = model.state_dict().items()
    torch.save({f'timm_model.{name}': x for name, x in weights}, path)
    return str(path)


def build(plan, arm, weights=None):
    """An arm's model as training starts with it, and its config."""
    cfg = copy.deepcopy(PLANS[plan].configs[arm])
    import_modules_from_strings(**cfg.custom_imports)
    part = cfg.model.backbone
    part = part[0] if isinstance(part, list) else part
    if weights:
        part.init_cfg.checkpoint = weights
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
    if weights:
        model.init_weights()
    return model, cfg


def outputs(model):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.eval()._forward(x)
    return found[0] if isinstance(found, (list, tuple)) else found


@pytest.mark.parametrize(('plan', 'arm'), ARMS)
def test_arm(plan, arm, pretrained):
    """Its plugins are in the path; it starts as the baseline; its rates."""
    base, _ = build(plan, 'none', pretrained)
    model, cfg = build(plan, arm, pretrained)
    kinds = (PolarizedSelfAttention, SEModule)
    plugins = [m for m in model.modules() if isinstance(m, kinds)]
    has_plugins = arm not in ('none', 'dense', 'wide')
    assert len(plugins) == (4 if has_plugins else 0)
    changed = outputs(model), outputs(base)
    same = has_plugins or arm == 'none'
    assert torch.equal(*changed) == (same and arm != 'psa-s_quarter')
    if arm not in ('dense', 'wide'):
        theirs = base.state_dict()
        for name, tensor in model.state_dict().items():
            shared = name in theirs
            assert not shared or torch.equal(tensor, theirs[name]), name

    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = wrapper.optimizer.param_groups
    rates = [group['lr'] for group in groups]
    assert len(rates) == len(list(model.parameters()))
    mult = float(arm.partition('_lr')[2] or 1)
    for (name, _), rate in zip(model.named_parameters(), rates):
        expected = 0.5 if 'timm_model' in name else 1
        if '.psa.' in name:
            expected = mult
        assert rate == pytest.approx(1e-3 * expected), name


def test_the_layouts_are_what_they_are_called():
    for plan, arm in ARMS:
        model, _ = build(plan, arm)
        layouts = {
            m.layout
            for m in model.modules()
            if isinstance(m, PolarizedSelfAttention)
        }
        expected = dict(s={'sequential'}, p={'parallel'})
        is_psa = arm.startswith('psa')
        assert layouts == (expected[arm[4]] if is_psa else set())


def test_controls_are_heavier():
    sizes = {
        arm: sum(
            x.numel() for x in build('light_controls', arm)[0].parameters()
        )
        for arm in PLANS['light_controls'].configs
    }
    assert sizes['none'] < sizes['se'] < sizes['psa-s'] == sizes['psa-p']
    assert sizes['psa-s'] < sizes['wide'] < sizes['dense']


def test_plans_share_runs_and_seeds_are_fresh():
    search, main, controls, poses = (
        PLANS[f'light_{name}']
        for name in ('search', 'camvid', 'controls', 'lspet')
    )
    assert not {*search.seeds} & {*main.seeds, *poses.seeds}
    assert {*controls.seeds} < {*main.seeds}
    for arm, cfg in main.configs.items():
        assert cfg.to_dict() == controls.configs[arm].to_dict()
        if arm in search.configs:
            assert cfg.to_dict() == search.configs[arm].to_dict()


def test_kaiming_under_the_identity():
    block = KaimingPSA(64, 'sequential', identity_init=True)
    x = torch.rand(2, 64, 5, 5)
    torch.testing.assert_close(block(x), x)
    for name in ('ch_wv', 'ch_wz', 'sp_wq'):
        weight = getattr(block, name).weight
        expected = (2 / weight.shape[1]) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.1), name


def test_fast_on_cpu_keeps_the_function():
    torch.manual_seed(0)
    model = timm.create_model('tf_efficientnet_lite0', features_only=True)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x)
        fast_on_cpu(model)
        for ours, theirs in zip(model(x), expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    dtypes = []
    model.blocks[0][0].conv_dw.register_forward_hook(
        lambda module, args, out: dtypes.append(out.dtype)
    )
    with torch.autocast('cpu', torch.bfloat16):
        assert model(x)[0].dtype == torch.bfloat16
    assert dtypes == [torch.float32]


@pytest.mark.parametrize(
    'path',
    [path for path in RESULTS if path.parent.name in PLANS],
    ids=lambda path: path.parent.name,
)
def test_results_are_of_the_plan(path):
    """A run of another config would be refused."""
    runs = Runs(PLANS[path.parent.name], path.parent)
    assert len(runs.missing) < len(runs.plan.runs)
    for run in runs.results['runs']:
        assert run['hash'] and run['start']
    assert all('resumed' not in run for run in runs.results['runs'])


@pytest.mark.parametrize(
    'path',
    [path for path in RESULTS if path.parent.name not in PLANS],
    ids=lambda path: path.parent.name,
)
def test_older_results_say_what_they_lack(path):
    results = read(path)
    runs = results['runs']
    assert runs and {run['arm'] for run in runs} == {*results['arms']}
    for run in runs:
        assert run['hash'] is run['start'] is run['versions'] is None
    starts = report.Report(results).starts
    for arm, found in results['arms'].items():
        if arm != 'none':
            assert 'weights not paired' in found['note']
            assert f'- {arm}: {found["note"]}.' in starts
            if arm.endswith(('usual-start', 'official')):
                assert found['note'] == 'Kaiming start, weights not paired'


def test_gains(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'STUDY', tmp_path)
    for name, scores in (('a', (50, 52)), ('b', (50, 51))):
        runs = [
            dict(
                arm=arm,
                seed=0,
                evaluations=[dict(iteration=1, metrics=dict(mIoU=score))],
            )
            for arm, score in zip(('none', 'psa'), scores)
        ]
        arms = {'none': {}, 'psa': {}}
        kinds = dict(metric='mIoU', rule='greater', seeds=[0], arms=arms)
        (tmp_path / name).mkdir()
        write(tmp_path / name / 'results.json', dict(kinds, runs=runs))
    page = '<!-- a b.gains{} -->\nold\n<!-- end -->\nrest'
    lines = report.fill(page.format('')).splitlines()
    assert lines[2] == '| over none | psa |'
    assert lines[4:6] == ['| a: mIoU | +2.00 |', '| b: mIoU | +1.00 |']
    assert lines[-2:] == ['<!-- end -->', 'rest']
    lines = report.fill(page.format(' over psa')).splitlines()
    assert lines[2] == '| over psa | none |'
    assert lines[4] == '| a: mIoU | -2.00 |'


@pytest.mark.parametrize('page', report.PAGES)
def test_page_shows_what_the_results_say(page):
    text = (report.REPO / page).read_text()
    assert len(report.PLACE.findall(text)) >= (10 if 'study' in page else 1)
    assert report.fill(text) == text
