import json
import sys

import pytest
from helpers import REPO, load_script
from mmengine.config import Config

from mmpsa.compare.plan import read_plan

quickstart = load_script('dev/quickstart.py')


def test_metric_of(tmp_path, monkeypatch):
    models = {x: ('config', tmp_path) for x in ('pose + PSA', 'segmentation')}
    monkeypatch.setattr(quickstart, 'MODELS', models)
    metrics = tmp_path / 'metrics.json'
    metrics.write_text(json.dumps({'bbox@0.1/PCK': 0.5123}))
    evaluations = [dict(metrics=dict(mIoU=x)) for x in (50.0, 43.21)]
    record = tmp_path / 'run.json'
    record.write_text(json.dumps(dict(evaluations=evaluations)))
    assert quickstart.metric_of('pose + PSA') == 'PCK@0.1 51.2'
    assert quickstart.metric_of('segmentation') == 'mIoU 43.2'


def test_the_plan_compares_the_shipped_configs():
    """The picture shows two of its models, built from their configs."""
    find = load_script('tools/cli.py').config_file
    plan = read_plan(str(REPO / quickstart.PLAN), find)
    folders = {folder.name for _, folder in quickstart.MODELS.values()}
    for arm, label in (
        ('none', 'segmentation'),
        ('psa', 'segmentation + PSA'),
    ):
        name, folder = quickstart.MODELS[label]
        shipped = Config.fromfile(REPO / quickstart.config_of(name))
        for entry in shipped.model.backbone.get('plugins', ()):
            assert all(entry.pop('stages'))  # as without it
        assert plan.configs[arm].model == shipped.model
        assert folder.name == f'{arm}_seed0' and ((arm, 0) in plan.runs)
    assert len(folders) == 3


def test_all_is_done_once(tmp_path, monkeypatch):
    ran = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        quickstart, 'run', lambda title, command, *_: ran.append(command[:4])
    )
    folder = quickstart.OUT / quickstart.POSE
    folder.mkdir(parents=True)
    (folder / 'last_checkpoint').write_text('epoch_5.pth')
    quickstart.train_and_test_pose(force=False)
    assert [command[1] for command in ran] == ['test']
    (folder / 'metrics.json').touch()
    quickstart.train_and_test_pose(force=False)
    assert len(ran) == 1
    quickstart.train_and_test_pose(force=True)
    assert [command[1] for command in ran] == ['test', 'train', 'test']
    quickstart.COMPARISON.mkdir()
    quickstart.compare(force=False)  # which keeps what is finished
    assert ran[-1][1:] == ['run', 'mmpsa', 'compare']
    assert quickstart.COMPARISON.exists()
    quickstart.compare(force=True)
    assert not quickstart.COMPARISON.exists()


def test_run_logs_all_and_shows_some(tmp_path, capfd):
    log = tmp_path / 'new/run.log'
    code = 'print("Epoch(train) 1"); print("other")'
    quickstart.run('A step', [sys.executable, '-c', code], log, 'Epoch(')
    assert log.read_text() == 'Epoch(train) 1\nother\n'
    shown = capfd.readouterr().out.splitlines()
    assert '== A step' in shown
    assert 'Epoch(train) 1' in shown
    assert 'other' not in shown


def test_a_failed_step_ends_with_its_command_and_last_lines():
    code = 'print("what went wrong"); raise SystemExit(3)'
    with pytest.raises(SystemExit) as error:
        quickstart.run('A step', [sys.executable, '-c', code], show='no line')
    message = str(error.value)
    assert 'what went wrong' in message
    assert 'status 3' in message
    assert message.endswith(code)
