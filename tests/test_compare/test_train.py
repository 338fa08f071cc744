"""What is recorded of a run, and what its pair shares with it."""

import copy
import json
import pickle

import pytest
import torch
from mmengine.runner import Runner
from torch import nn
from toy_plan import PSA, WIDE

from mmpsa.compare import train as module
from mmpsa.compare.train import start_of, train


def run(plan, folder, arm='none', metric='score', record=None, **options):
    """Train an arm in here; gives what it leaves in ``run.json``."""
    folder.mkdir(exist_ok=True)
    cfg = plan.config_of(arm, 1)
    cfg.merge_from_dict(options)
    record = record or dict(arm=arm, seed=1, hash='x')
    job = dict(cfg=cfg, metric=metric, record=record)
    (folder / 'job.pkl').write_bytes(pickle.dumps(job))
    train(str(folder / 'job.pkl'))
    return json.loads((folder / 'run.json').read_text())


def test_record(plan, tmp_path):
    found = run(plan(), tmp_path / 'none')
    assert found['finished'] and found['seconds'] > 0
    assert (found['arm'], found['seed'], found['hash']) == ('none', 1, 'x')
    assert [x['iteration'] for x in found['evaluations']] == [2, 4, 6]
    (score,) = found['evaluations'][-1]['metrics'].items()
    assert score[0] == 'score' and 0 <= score[1] <= 100
    assert found['start'].keys() == {
        'backbone.conv.weight',
        'backbone.conv.bias',
    }
    assert found['versions']['torch'] == torch.__version__
    assert 'resumed' not in found


def test_arms_of_a_seed_share_data_and_random_numbers(
    plan, tmp_path, monkeypatch
):
    """Constructors draw from the generator that training uses."""
    seen = []
    original = nn.functional.binary_cross_entropy_with_logits
    monkeypatch.setattr(
        nn.functional,
        'binary_cross_entropy_with_logits',
        lambda scores, labels: (
            seen.append((torch.random.get_rng_state(), labels))
            or original(scores, labels)
        ),
    )
    found = plan(arms=f'dict(none={{}}, psa={PSA}, wide={WIDE})')
    run(found, tmp_path / 'none')
    theirs = seen[:]
    for arm in ('psa', 'wide'):
        seen.clear()
        run(found, tmp_path / arm, arm)
        assert len(seen) == len(theirs) == 6
        for (state, labels), (their_state, their_labels) in zip(seen, theirs):
            assert torch.equal(state, their_state)
            assert torch.equal(labels, their_labels)


def test_hashes_of_weights():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    same = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert start_of(model) == start_of(same)
    assert '1.num_batches_tracked' in start_of(model)
    with torch.no_grad():
        same[0].weight[0, 0] += 1e-7
    unequal = {
        name
        for name, digest in start_of(same).items()
        if digest != start_of(model)[name]
    }
    assert unequal == {'0.weight'}
    assert start_of(nn.Linear(2, 3))['weight'] != start_of(nn.Linear(3, 2))


def test_bfloat16_and_shapes_are_hashed():
    linear = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(linear.weight)
    digests = [start_of(linear)['weight']]
    digests.append(start_of(linear.to(torch.bfloat16))['weight'])
    linear.weight.data = torch.zeros(4, 1)
    digests.append(start_of(linear)['weight'])
    assert len({*digests}) == 3


def test_a_metric_that_is_missing_ends_the_run_at_once(plan, tmp_path):
    with pytest.raises(KeyError, match="no metric 'mIoU'"):
        run(plan(), tmp_path / 'none', metric='mIoU')
    found = json.loads((tmp_path / 'none/run.json').read_text())
    (evaluation,) = found['evaluations']  # so that it can be told
    assert 'score' in evaluation['metrics'] and 'finished' not in found


def test_an_evaluation_without_metrics(plan, tmp_path, monkeypatch):
    """Of mmdet, where nothing is detected."""
    from toy_experiment import ToyScore

    monkeypatch.setattr(ToyScore, 'evaluate', lambda *_: {})
    found = run(plan(), tmp_path / 'none')
    assert found['finished']
    assert found['evaluations'][-1]['metrics'] == dict(score=None)


def test_no_evaluation_at_the_end(plan, tmp_path):
    with pytest.raises(RuntimeError, match='the end, iteration 6, was not'):
        run(plan(), tmp_path / 'none', **{'train_cfg.val_begin': 9})
    found = json.loads((tmp_path / 'none/run.json').read_text())
    assert 'finished' not in found


def test_a_score_that_is_no_number(plan, tmp_path, monkeypatch):
    from toy_experiment import ToyScore

    monkeypatch.setattr(
        ToyScore, 'compute_metrics', lambda *_: dict(score=float('nan'))
    )
    found = run(plan(), tmp_path / 'none')
    assert found['evaluations'][-1]['metrics'] == dict(score=None)


def test_resume(plan, tmp_path, monkeypatch):
    """It keeps the start and the evaluations before its checkpoint."""
    folder = tmp_path / 'none'
    original = Runner.save_checkpoint

    def dies(self, *args, **kwargs):
        if self.iter == 3:  # 4 iterations are done
            raise KeyboardInterrupt
        original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, 'save_checkpoint', dies)
        with pytest.raises(KeyboardInterrupt):
            run(plan(), folder)
    cut = json.loads((folder / 'run.json').read_text())
    assert [x['iteration'] for x in cut['evaluations']] == [2]
    cut['evaluations'] += [
        dict(iteration=i, metrics=dict(score=-i)) for i in (1, 5)
    ]
    cut['seconds'] = 100.0
    found = run(plan(), folder, record=copy.deepcopy(cut), resume=True)
    assert found['resumed'] and found['finished']
    assert found['start'] == cut['start']
    assert [x['iteration'] for x in found['evaluations']] == [2, 1, 4, 6]
    assert found['seconds'] > 100


def test_memory_of_a_gpu(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(module.torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(module.torch.cuda, 'get_device_name', lambda: 'card')
    monkeypatch.setattr(module.torch.cuda, 'max_memory_allocated', lambda: 5)
    hook = module.RecordHook(tmp_path / 'run.json', 'score', {})
    hook.record['evaluations'] = [dict(iteration=6)]
    hook.after_train(type('Runner', (), dict(iter=6)))
    assert hook.record['memory'] == 5
    assert module.versions()['device'] == 'card'
