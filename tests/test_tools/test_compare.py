"""compare from the command line, with real trainings."""

import json
import re
import shutil

import pytest
from helpers import REPO, run_script

TOY = REPO / 'tests/test_compare'
PLAN = f"""
base = '{TOY}/toy_base.py'
arms = dict(
    none=dict(),
    psa=dict(model=dict(backbone=dict(plugins=[
        dict(cfg=dict(type='PSA'), modules='conv')]))))
seeds = [0]
metric = 'score'
options = dict(custom_hooks=[dict(type='Killed', file='{{}}', iteration=3)])
"""


def test_a_killed_run_and_what_is_written_again(tmp_path, monkeypatch, capsys):
    """The other goes on; the next call trains it; then nothing is trained."""
    monkeypatch.syspath_prepend(TOY)
    monkeypatch.setenv('PYTHONPATH', f'{TOY}:{REPO}')
    out = tmp_path / 'out'
    plan = tmp_path / 'plan.py'
    plan.write_text(PLAN.format(tmp_path / 'killed'))

    def compare(*options):
        with pytest.raises(SystemExit) as stopped:
            run_script('tools/compare.py', plan, '--work-dir', out, *options)
        found = capsys.readouterr()
        return stopped.value.code, found.out + found.err

    status, text = compare('--jobs', 2)
    assert status == 1
    assert '1 of 2 runs done, 0 running, 1 failed' in text
    assert re.search(r'\w+_seed0 failed: .*train.log', text)
    assert len(json.loads((out / 'results.json').read_text())['runs']) == 1
    assert 'is missing.' in (out / 'report.md').read_text()

    status, text = compare()
    assert status == 0
    assert '1 of 2 runs done, 1 running, 0 failed' in text
    results = json.loads((out / 'results.json').read_text())
    assert {run['arm'] for run in results['runs']} == {'none', 'psa'}
    assert results['costs']['psa']['flops'] > results['costs']['none']['flops']
    page = (out / 'report.md').read_text()
    assert 'is missing.' not in page and 'no interval' in page
    assert page.split('\n\n')[4] in text  # the table

    files = {x.name: x.read_bytes() for x in out.iterdir() if x.is_file()}
    assert {*files} == {'report.md', 'report.png', 'results.json'}
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)  # the logs are not needed
    status, text = compare()
    assert status == 0 and 'runs done' not in text
    assert {x.name: x.read_bytes() for x in out.iterdir()} == files


def test_refusals_are_errors_of_the_command_line(tmp_path, capsys):
    plan = tmp_path / 'plan.py'
    plan.write_text(PLAN.replace('toy_base', 'toy_bse').format('x'))
    with pytest.raises(SystemExit) as stopped:
        run_script('tools/compare.py', plan, '--work-dir', tmp_path / 'out')
    assert stopped.value.code == 2
    assert "there is no file '" in capsys.readouterr().err
    plan.write_text(PLAN.format('x').replace('[0]', '[]'))
    with pytest.raises(SystemExit):
        run_script('tools/compare.py', plan, '--work-dir', tmp_path / 'out')
    assert 'seeds must be a list' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('jobs', ['0', 'many'])
def test_jobs(jobs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_script('tools/compare.py', 'plan.py', '--jobs', jobs)
    assert '--jobs' in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('want', ['0', '-1', 'nan'])
def test_want(want, capsys):
    with pytest.raises(SystemExit):
        run_script('tools/compare.py', 'plan.py', '--want', want)
    assert '--want must be above 0' in capsys.readouterr().err


def test_a_plan_that_is_not_there(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_script('tools/compare.py', 'no_plan.py')
    assert stopped.value.code == 2
    assert 'no_plan.py' in capsys.readouterr().err


@pytest.mark.slow
def test_worked_example(tmp_path, monkeypatch, capsys):
    """That of docs/compare.md, on less of its data: six short trainings."""
    pytest.importorskip('mmseg')
    page = (REPO / 'docs/compare.md').read_text()
    command = re.search(r'mim run mmpsa compare (.*)', page)[1].split()
    _, plan = re.findall(r'(?s)```python\n(.*?)```', page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(REPO))
    run_script('dev/make_figures.py', '--train', 64, '--val', 32)
    (tmp_path / 'plan.py').write_text(plan)
    with pytest.raises(SystemExit) as stopped:
        run_script('tools/compare.py', *command)
    text = capsys.readouterr().out
    assert stopped.value.code == 0, text
    assert '6 of 6 runs done' in text
    report = (tmp_path / 'work_dirs/plan/report.md').read_text()
    # the plugin changes nothing of the baseline's weights
    (total,) = re.findall(
        r'- psa: (\d+) of \1 weights of none are equal', report
    )
    assert int(total) > 100
    table = next(x for x in report.split('\n\n') if x.startswith('| arm'))
    assert len(table.splitlines()) == 4
    # the page shows a table of the same form
    assert table.splitlines()[0] in page
    assert re.search(r'\*\*psa: (clear|no clear)', report)
