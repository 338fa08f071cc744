import json
import sys

import pytest
from helpers import load_script

quickstart = load_script('dev/quickstart.py')


def test_seconds_per_iteration_leaves_validation_out():
    lines = [dict(time=t, loss=1.0, step=1) for t in (0.5, 0.1, 0.2)]
    lines.append(dict(time=9.0, PCK=0.5, step=3))
    text = '\n'.join(map(json.dumps, lines))
    assert quickstart.seconds_per_iteration(text) == 0.2


@pytest.mark.parametrize(
    ('metrics', 'text'),
    [
        ({'bbox@0.1/PCK': 0.5123}, 'PCK@0.1 51.2'),
        ({'aAcc': 90.0, 'mIoU': 43.21}, 'mIoU 43.2'),
    ],
)
def test_metric_of(metrics, text, tmp_path, monkeypatch):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/metrics.json').write_text(json.dumps(metrics))
    monkeypatch.setattr(quickstart, 'OUT', tmp_path)
    assert quickstart.metric_of('run') == text


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
