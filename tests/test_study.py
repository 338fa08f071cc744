"""The study compares what it says: arms, their start, what logs give."""

import json
import math
import sys

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mmpsa import PolarizedSelfAttention
from projects.study import pictures, report, run, runs
from projects.study.modules import ECA, SE, fast_on_cpu

SCRATCH = [(task, arm) for task in ('pose', 'seg') for arm in runs.SCRATCH]
PRETRAINED = [('camvid', arm) for arm in runs.PRETRAINED] + [
    ('lspet', arm) for arm in ('psa-p_pyramid+head', 'psa-p_late')
]
PLUGINS = {  # how many an arm has, by its place
    'pyramid': 4,
    'laterals': 4,
    'head': 1,
    'late': 2,
    'blocks': 16,
    **dict.fromkeys(runs.LEVELS, 1),
}


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A file with weights for the pretrained backbone."""
    path = tmp_path_factory.mktemp('pretrained') / 'weights.pth'
    torch.manual_seed(1)
    model = timm.create_model('tf_efficientnet_lite0')
    weights = model.state_dict().items()
    torch.save({f'timm_model.{name}': x for name, x in weights}, path)
    return path


def build(task, arm, weights=None):
    """An arm's model as training starts with it, and its config."""
    cfg = runs.config_of(task, arm, seed=0)
    if weights:
        backbone = f'{runs.TASKS[task].parts["backbone"]}.init_cfg.checkpoint'
        cfg.merge_from_dict({backbone: str(weights)})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.manual_seed(0)
    model.init_weights()
    return model, cfg


def plugins_of(model):
    kinds = (PolarizedSelfAttention, SE, ECA)
    found = [m for m in model.modules() if isinstance(m, kinds)]
    inside = {id(m) for plugin in found for m in plugin.modules()}
    return found, inside


def outputs(model, base):
    """What two models with the weights of ``base`` compute alike."""
    keys = model.load_state_dict(base.state_dict(), strict=False)
    assert not keys.unexpected_keys
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return [m.eval()._forward(x) for m in (base, model)]


def is_same(a, b):
    if isinstance(a, (list, tuple)):
        return all(map(is_same, a, b))
    return torch.equal(a, b)


@pytest.mark.parametrize(('task', 'arm'), SCRATCH)
def test_where_plugins_are_and_how_all_start_from_scratch(task, arm):
    backbone = build(task, arm)[0].backbone
    plugins, inside = plugins_of(backbone)
    assert len(plugins) == {'none': 0, 'psa-p_stages34': 4}.get(arm, 8)
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Conv2d) and id(module) not in inside:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            std = math.sqrt(2 / fan_out)
            assert module.weight.std().item() == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize(('task', 'arm'), SCRATCH)
def test_identity_or_not_at_the_start_from_scratch(task, arm):
    base, backbone = (build(task, name)[0].backbone for name in ('none', arm))
    for module in base.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # 0 at the end of each block at the start: that hides plugins
            torch.nn.init.ones_(module.weight)
    keys = backbone.load_state_dict(base.state_dict(), strict=False)
    assert not keys.unexpected_keys
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for module in (base, backbone):
            module.eval()  # mmpose's ResNet returns nothing
        same = is_same(base(x), backbone(x))
    usual = ('official', 'usual-start')
    assert same == (arm != 'se' and not arm.endswith(usual))


@pytest.mark.parametrize(('task', 'arm'), PRETRAINED)
def test_pretrained_arm(task, arm, pretrained):
    base, _ = build(task, 'none', pretrained)
    model, cfg = build(task, arm, pretrained)
    weights = torch.load(pretrained)
    for name, tensor in model.state_dict().items():
        if 'timm_model.' in name and 'psa' not in name:
            name = name[name.index('timm_model.') :]
            torch.testing.assert_close(tensor, weights[name])

    plugins, _ = plugins_of(model)
    places = [] if arm == 'none' else arm.split('_')[1].split('+')
    assert len(plugins) == sum(PLUGINS[place] for place in places)
    assert is_same(*outputs(model, base)) == (not arm.endswith('usual-start'))

    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = [group['lr'] for group in wrapper.optimizer.param_groups]
    assert len(rates) == len(list(model.parameters()))
    mult = dict(lr3=3, **{'lr0.3': 0.3}).get(arm.split('_')[-1], 1)
    for (name, _), rate in zip(model.named_parameters(), rates):
        new = {'psa', 'se', 'eca'} & set(name.split('.'))
        expected = mult if new else 0.5 if 'timm_model' in name else 1
        assert rate == pytest.approx(2e-3 * expected), name


@pytest.mark.parametrize(
    'plugin, last',
    [(SE(64, identity_init=True), 'fc2.bias'), (ECA(64), 'conv.weight')],
)
def test_gates_start_at_one_and_open_and_close(plugin, last):
    x = torch.rand(2, 64, 5, 5) + 1
    torch.testing.assert_close(plugin(x), x)
    for value, gate in ((40, 2), (-40, 0)):
        torch.nn.init.constant_(plugin.get_parameter(last), value)
        torch.testing.assert_close(plugin(x), gate * x)


def test_se_starts_as_timms_without_identity_init():
    x = torch.rand(2, 64, 5, 5)
    assert not torch.allclose(SE(64)(x), x, atol=0.1)


def test_usual_start():
    kaiming = {  # parameter: its fan in
        'psa-p_usual-start': {'ch_wv': 256, 'ch_wz': 128, 'sp_wq': 256},
        'psa-p-official': {'conv_v_right': 256, 'conv_q_left': 256},
    }
    for arm, parameters in kaiming.items():
        plugin = plugins_of(build('pose', arm)[0])[0][-1]
        for name, fan in parameters.items():
            std = plugin.get_parameter(f'{name}.weight').std().item()
            assert std == pytest.approx(math.sqrt(2 / fan), rel=0.1), name
        if arm == 'psa-p_usual-start':
            assert (plugin.ln.weight == 1).all()


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


def test_arms_of_the_shipped_configs():
    for task in (*runs.MAIN, 'pose', 'seg'):
        base, arms, parts, *_ = runs.TASKS[task]
        for layout in 'ps':
            path = base.replace('.py', f'_psa-{layout}.py')
            shipped = Config.fromfile(runs.REPO / path)
            arm = f'psa-{layout}' + ('_pyramid' if task in runs.MAIN else '')
            ((part, plugins),) = arms[arm].items()
            model = shipped
            for key in parts[part].split('.'):
                model = model[int(key) if key.isdigit() else key]
            assert [x.to_dict() for x in model.plugins] == plugins


def test_planned_runs_have_arms():
    for task, arm, _ in runs.plan():
        assert arm in runs.TASKS[task].arms


def test_logs_are_of_known_runs():
    known = {
        runs.name_of(task, arm, seed)
        for task in runs.TASKS
        for arm in runs.TASKS[task].arms
        for seed in (*runs.SEEDS, runs.SEARCH_SEED)
    }
    assert {path.stem for path in runs.LOGS.iterdir()} <= known


def test_a_share_of_the_data_is_spread_over_each_part(tmp_path):
    path = tmp_path / 'data.json'
    path.write_text(
        json.dumps(dict(metainfo={}, data_list=[dict(i=i) for i in range(20)]))
    )
    part = dict(
        type='mmengine.dataset.BaseDataset',
        ann_file=str(path),
        data_prefix={},
    )
    joined = ConfigDict(type='ConcatDataset', datasets=[part, dict(part)])
    runs.take(joined, 0.3, 'mmengine')
    taken = DATASETS.build(joined)
    pictures = [taken.datasets[1].get_data_info(i)['i'] for i in range(6)]
    assert pictures == [0, 3, 6, 10, 13, 16]
    assert len(taken) == 12


def test_less_data(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'LOGS', tmp_path)
    assert report.less_data_table() == 'Nothing was run yet.'
    for arm, value in (('none', 30.0), (runs.PSA_P, 32.5)):
        path = tmp_path / f'camvid-30_{arm}_seed0.json'
        path.write_text(json.dumps(dict(step=600, mIoU=value)))
    row = '| camvid, 30 % | 30.0 | 32.5 | +2.5 | 1 |'
    assert report.less_data_table().splitlines()[2:] == [row]


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
    assert report.scores('seg', 'none', [0, 1]) == {0: 40.0}


def test_interval_of_paired_differences(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'LOGS', tmp_path)
    figures = {'none': (50.0, 51.0, 52.0), 'psa-p_pyramid': (51.0, 53.0, 55.0)}
    for arm, values in figures.items():
        for seed, value in enumerate(values):
            path = tmp_path / f'camvid_{arm}_seed{seed}.json'
            path.write_text(json.dumps(dict(step=600, mIoU=value)))
    (tmp_path / 'camvid_none_seed3.json').write_text(
        json.dumps(dict(step=600, mIoU=0.0))  # without a partner
    )
    differences = report.paired('camvid', 'psa-p_pyramid')
    assert differences == [1.0, 2.0, 3.0]
    # t of 2 degrees of freedom at 97.5 %, from a table: 4.303
    half = 4.303 / math.sqrt(3)
    assert report.interval(differences) == pytest.approx(
        (2 - half, 2 + half), abs=1e-3
    )
    assert report.gain(differences) == '+2.0 (-0.5 to +4.5)'
    # an end near 0 shows its side
    assert report.gain([0.5, 0.5, 0.51]) == '+0.5 (+0.5 to +0.5)'
    assert report.gain([0.1, 0.5, 0.3]) == '+0.3 (-0.2 to +0.8)'
    assert report.gain([0.17, 0.27, 0.37]) == '+0.3 (+0.02 to +0.5)'
    assert report.interval([1.0]) is None
    assert report.gain([1.0]) == '+1.0'


@pytest.mark.parametrize(
    'goal, steps', [(10, 100), (25, 150), (30, 200), (34, 400), (41, None)]
)
def test_training_to_a_figure(goal, steps):
    # it dips after step 200
    points = [(100, 20.0), (200, 30.0), (300, 28.0), (500, 40.0)]
    assert report.steps_to(goal, points) == steps


def test_curves_are_of_the_seeds_that_all_have(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'LOGS', tmp_path)
    below = {'se_pyramid': 0.04, 'psa-s_pyramid': 0.06}  # 50.0 and 49.9
    for arm in runs.COMPARED:
        for seed, last in ((0, 50.0 - below.get(arm, 0)), (1, 60.0)):
            if (arm, seed) == ('se_pyramid', 1):
                continue
            lines = [dict(step=300, mIoU=last / 2), dict(step=600, mIoU=last)]
            path = tmp_path / f'camvid_{arm}_seed{seed}.json'
            path.write_text('\n'.join(map(json.dumps, lines)))
    expected = [(300, 25.0), (600, 50.0)]
    assert report.mean_curve('camvid', 'none') == expected
    costs = {arm: dict(train=0.5) for arm in runs.COMPARED}
    costs['se_pyramid'] = dict(train=0.6)
    monkeypatch.setattr(report, 'COSTS', tmp_path / 'cost.json')
    report.COSTS.write_text(json.dumps(dict(camvid=costs)))
    row = report.reach_table().splitlines()[-1]
    assert '| 50.0 | 100 %, 5.0 min | 100 %, 6.0 ' in row
    assert row.endswith('| 100 %, 5.0 min | not reached |')
    report.COSTS.write_text('{}')
    assert '| 50.0 | 100 % | 100 % |' in report.reach_table()
    assert 'time' not in report.gains_table('over none', 'figures', 'time')


def test_the_answer_names_intervals_on_one_side_of_0(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'LOGS', tmp_path)
    figures = {
        'none': (30.0, 31.0, 32.0),
        'se_pyramid': (29.0, 30.1, 31.0),  # below none
        'psa-p_pyramid': (30.5, 31.0, 31.5),  # as none, above SE
        'psa-s_pyramid': (29.0, 31.0, 33.0),  # as either
    }
    for arm, values in figures.items():
        for seed, value in enumerate(values):
            path = tmp_path / f'camvid_{arm}_seed{seed}.json'
            path.write_text(json.dumps(dict(step=600, mIoU=value)))
    assert ' '.join(report.answer().split()) == (
        'Of these 15 intervals, 1 do not contain 0: CamVid, SE over none -1.0 '
        '(-1.1 to -0.8).'
    )


@pytest.mark.parametrize('states', [['stopped', 'done'], ['done']])
def test_log_of_a_run_joins_its_attempts(states, tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'LOGS', tmp_path)
    for day, state in enumerate(states):
        folder = tmp_path / f'2026010{day}_000000/vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text(f'{state}\n')
    run.keep_log(('camvid', 'none', 0), tmp_path)
    log = (tmp_path / 'camvid_none_seed0.json').read_text()
    assert log.splitlines() == states


def test_a_run_that_failed_is_told(tmp_path, monkeypatch, capsys):
    for name in ('LOGS', 'WORK'):
        monkeypatch.setattr(run, name, tmp_path)
    monkeypatch.setattr(run, 'plan', lambda: [('camvid', 'none', 0)])
    monkeypatch.setattr(run, 'train', lambda _: -9)  # killed
    monkeypatch.setattr(sys, 'argv', ['run'])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code


def test_changes_of_a_prediction():
    image = np.zeros((1, 4, 3), np.uint8)
    labels = np.array([[1, 1, 1, 1]])
    before, after = np.array([[1, 0, 1, 0]]), np.array([[1, 1, 0, 0]])
    same = [64] * 3
    expected = [[same, pictures.GAINED, pictures.LOST, same]]
    shown = pictures.changes(image, labels, before, after)
    assert np.array_equal(shown, expected)


def test_places_are_ranked_by_the_sum_of_both_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'LOGS', tmp_path)
    scores = {'none': (0.5, 40), 'psa-p_late': (0.49, 40.5)}
    scores.update({'psa-p_head': (0.51, 40.2), 'psa-p_blocks': (0.6, None)})
    for arm, (pose, seg) in scores.items():
        for task, line in (
            ('lspet', {'bbox@0.1/PCK': pose}),
            ('camvid', {'mIoU': seg}),
        ):
            if None not in line.values():
                path = tmp_path / f'{task}_{arm}_seed10.json'
                path.write_text(json.dumps(dict(line, step=1)))
    text = ' '.join(report.places().split())
    assert 'psa-p_head +1.2, psa-p_late -0.5.' in text


def test_findings_are_intervals_on_one_side_of_0(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'LOGS', tmp_path)
    figures = {
        'none': (30.0, 31.0, 32.0),
        'se': (31.0, 32.1, 33.0),
        'psa-p': (29.0, 30.1, 31.0),
        'psa-s': (31.0, 31.0, 33.0),
        'psa-ch': (40.0,),
    }
    for arm, values in figures.items():
        for seed, value in enumerate(values):
            path = tmp_path / f'seg_{arm}_seed{seed}.json'
            path.write_text(json.dumps(dict(step=1, mIoU=value)))
    text = ' '.join(report.scratch_findings().split())
    assert text == (
        'Of the 3 differences in these tables, these have an interval '
        'above 0: seg se +1.0 (+0.9 to +1.2). Below 0: seg psa-p -1.0 (-1.1 '
        'to -0.8).'
    )


@pytest.mark.parametrize('page', ['docs/study.md', *report.READMES])
def test_page_shows_what_the_logs_say(page):
    page = report.REPO / page
    text = page.read_text()
    assert report.fill(text, report.tables()[page]) == text
