"""Which runs are trained, kept, refused; what is left of those that fail."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from toy_plan import PSA, WIDE

from mmpsa.compare import runs as module
from mmpsa.compare.plan import PlanError
from mmpsa.compare.results import read, run_of, start_of, write
from mmpsa.compare.runs import Runs, devices

SCORE = dict(iteration=6, metrics=dict(score=50.0, loss=0.5))


class Process:
    """In place of the process of a run; ``outcomes`` says what comes of it.

    An outcome changes the record that a finished run would have left.
    """

    outcomes = {}
    started = []

    def __init__(self, command, env, stdout, stderr):
        self.env = env
        self.terminated = False
        self.folder = Path(command[-1]).parent
        self.work(pickle.loads(Path(command[-1]).read_bytes()))

    def work(self, job):
        run = job['record']['arm'], job['record']['seed']
        self.job = job
        Process.started.append(self)
        outcome = self.outcomes.get(run, {})
        record = dict(
            job['record'],
            start=dict(a='0' * 8, b='1' * 8),
            evaluations=[SCORE],
            versions=dict(torch='2'),
            seconds=60.0,
            finished=True,
        )
        record.update(outcome)
        self.returncode = 0 if record['finished'] else 1
        if not record['finished']:
            (self.folder / 'train.log').write_bytes(b'caf\xe9\nit broke\n\n')
        write(self.folder / 'run.json', record)
        (self.folder / 'last_checkpoint').write_text('iter_2.pth')

    def poll(self):
        return self.returncode

    def terminate(self):
        self.terminated = True

    def wait(self):
        assert self.terminated


@pytest.fixture(autouse=True)
def processes(monkeypatch):
    monkeypatch.setattr(module.subprocess, 'Popen', Process)
    monkeypatch.setattr(module, 'POLL', 0)
    monkeypatch.setattr(Process, 'outcomes', {})
    monkeypatch.setattr(Process, 'started', [])
    return Process


def train(plan, folder, jobs=1, resume=False):
    runs = Runs(plan, folder)
    runs.train(jobs, resume)
    return runs


def names(processes):
    return [process.folder.name for process in processes]


def test_all_are_trained_once(plan, tmp_path, processes, capsys):
    runs = train(plan(), tmp_path / 'out')
    expected = ['none_seed0', 'psa_seed0', 'none_seed1', 'psa_seed1']
    assert names(processes.started) == expected
    assert [p.job['cfg'].randomness.seed for p in processes.started] == [
        0,
        0,
        1,
        1,
    ]
    assert 'plugins' in processes.started[1].job['cfg'].model.backbone
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '0 of 4 runs done, 1 running, 0 failed'
    assert lines[-1] == '4 of 4 runs done, 0 running, 0 failed'
    assert '1 of 4 runs done, 1 running, 0 failed, about 3 min left' in lines
    assert not runs.failed
    saved = read(tmp_path / 'out/results.json')
    assert saved == runs.results

    # from results.json alone, without the logs
    for name in expected:
        shutil.rmtree(tmp_path / 'out' / name)
    again = train(plan(), tmp_path / 'out')
    assert len(processes.started) == 4 and again.results == saved


def test_names_of_weights_are_kept_once(plan, tmp_path):
    results = train(plan(), tmp_path).results
    assert results['weights'] == [['a', 'b']]
    run = run_of(results, 'psa', 1)
    assert run['start'] == [0, '0' * 8 + '1' * 8]
    assert start_of(results, run) == dict(a='0' * 8, b='1' * 8)
    assert 'finished' not in run


def test_a_run_that_fails_stops_no_other(plan, tmp_path, processes, capsys):
    processes.outcomes['psa', 0] = dict(finished=False, evaluations=[])
    runs = train(plan(), tmp_path)
    log = tmp_path / 'psa_seed0/train.log'
    assert runs.failed == {'psa_seed0': f'status 1, it broke ({log})'}
    assert len(processes.started) == 4 and len(runs.results['runs']) == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == '3 of 4 runs done, 0 running, 1 failed'
    processes.outcomes.clear()
    assert not train(plan(), tmp_path).failed
    assert names(processes.started[4:]) == ['psa_seed0']


@pytest.mark.parametrize('resume', [False, True])
def test_a_cut_run(plan, tmp_path, processes, resume):
    """It starts over, or goes on with its checkpoint and its record."""
    cut = dict(finished=False, seconds=30.0)
    processes.outcomes['psa', 0] = cut
    train(plan(), tmp_path)
    processes.outcomes.clear()
    train(plan(), tmp_path, resume=resume)
    job = processes.started[-1].job
    assert bool(job['cfg'].get('resume')) == resume
    assert ('evaluations' in job['record']) == resume
    assert job['record'].get('seconds') == (30.0 if resume else None)


def test_nothing_goes_on_from_an_earlier_attempt(
    plan, tmp_path, processes, monkeypatch
):
    processes.outcomes['none', 0] = dict(finished=False)
    train(plan(), tmp_path)
    pointer = tmp_path / 'none_seed0/last_checkpoint'
    assert pointer.exists()
    monkeypatch.setattr(Process, 'work', lambda self, job: None)
    runs = Runs(plan(), tmp_path)
    runs.start(('none', 0), 1, None, resume=False)
    assert not pointer.exists()


def test_a_run_of_another_config_stops_it(plan, tmp_path, processes):
    train(plan(), tmp_path)
    shutil.rmtree(tmp_path / 'psa_seed0')
    with pytest.raises(PlanError, match='none_seed0 is of another config'):
        Runs(plan(options="{'optim_wrapper.optimizer.lr': 1.0}"), tmp_path)
    (tmp_path / 'results.json').unlink()  # its folder tells it too
    with pytest.raises(PlanError, match='none_seed0 is of another config'):
        Runs(plan(options="{'optim_wrapper.optimizer.lr': 1.0}"), tmp_path)
    assert (tmp_path / 'none_seed0/run.json').exists()


def test_a_run_whose_config_is_not_known_is_kept(plan, tmp_path, processes):
    results = train(plan(), tmp_path).results
    results['runs'][0]['hash'] = None
    write(tmp_path / 'results.json', results)
    assert not Runs(plan(), tmp_path).missing


def test_fewer_seeds_lose_nothing(plan, tmp_path, processes):
    train(plan(), tmp_path)
    runs = train(plan(seeds='[1]'), tmp_path)
    runs.finish(('psa', 1), 0)
    assert runs.results['seeds'] == [1] and not runs.missing
    assert len(read(tmp_path / 'results.json')['runs']) == 4


def test_a_metric_that_the_log_does_not_have(plan, tmp_path, processes):
    """After the first run that has none; the others are stopped."""
    processes.outcomes['none', 0] = dict(finished=False)
    with pytest.raises(PlanError, match="'mIou'; it has loss, score"):
        train(plan(metric="'mIou'"), tmp_path, jobs=2)
    assert len(processes.started) == 2
    assert processes.started[1].terminated
    with pytest.raises(PlanError, match="'mIou'; it has loss, score"):
        Runs(plan(metric="'mIou'"), tmp_path)


def test_threads_are_shared(plan, tmp_path, processes, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 8)
    train(plan(), tmp_path / 'a', jobs=3)
    assert processes.started[0].env['OMP_NUM_THREADS'] == '2'
    monkeypatch.setenv('OMP_NUM_THREADS', '5')
    train(plan(), tmp_path / 'b', jobs=3)
    assert processes.started[-1].env['OMP_NUM_THREADS'] == '5'


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert devices(3) == [None] * 3
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert devices(2) == ['0', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6,7')
    assert devices(2) == ['4', '5']
    with pytest.raises(PlanError, match='at most 4, .* got 5'):
        devices(5)


def test_each_job_has_a_gpu(plan, tmp_path, processes, monkeypatch):
    monkeypatch.setattr(module, 'devices', lambda jobs: ['2', '3'])
    train(plan(), tmp_path, jobs=2)
    used = [p.env['CUDA_VISIBLE_DEVICES'] for p in processes.started]
    assert used == ['2', '3', '2', '3']


def test_costs_are_measured_once(plan, tmp_path, processes, monkeypatch):
    asked = []

    def measure(configs):
        asked.append([*configs])
        return {arm: dict(params=1) for arm in configs}

    monkeypatch.setattr(module, 'measure', measure)
    for _ in range(2):
        train(plan(), tmp_path).measure()
    assert asked == [['none', 'psa']]
    costs = read(tmp_path / 'results.json')['costs']
    assert costs['psa']['params'] == 1 and len(costs['psa']['hash']) == 12
    arms = f'dict(none=dict(), psa={PSA}, wide={WIDE})'
    train(plan(arms=arms), tmp_path).measure()
    assert asked[1:] == [['none', 'psa', 'wide']]  # in turn, so all of them
    for arms in (f'dict(none=dict(), psa={PSA})', arms):
        train(plan(arms=arms), tmp_path).measure()
    assert len(asked) == 2


def test_costs_that_cannot_be_measured(
    plan, tmp_path, processes, monkeypatch, capsys
):
    def measure(configs):
        raise ImportError('own_module')

    monkeypatch.setattr(module, 'measure', measure)
    train(plan(), tmp_path).measure()
    said = "costs are not measured: ImportError('own_module')"
    assert said in capsys.readouterr().out
    assert len(read(tmp_path / 'results.json')['runs']) == 4


def test_killed(plan, tmp_path, processes):
    runs = Runs(plan(), tmp_path)
    (tmp_path / 'psa_seed0').mkdir()
    (tmp_path / 'psa_seed0/train.log').write_text('loss: 0.4')
    runs.finish(('psa', 0), -9)
    assert runs.failed['psa_seed0'].startswith('signal 9, loss: 0.4 (')


@pytest.mark.parametrize('text', ['', '{"runs": [', '[3]', 'null'])
@pytest.mark.parametrize('name', ['results.json', 'psa_seed0/run.json'])
def test_damaged(plan, tmp_path, processes, name, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(PlanError, match=f'{path} is damaged: .* remove it'):
        Runs(plan(), tmp_path)


def test_results_have_a_line_for_each_record(plan, tmp_path):
    train(plan(), tmp_path)
    text = (tmp_path / 'results.json').read_text()
    lines = [x for x in text.splitlines() if x.startswith('{"arm"')]
    assert len(lines) == 4 and json.loads(lines[0].rstrip(','))['seed'] == 0
