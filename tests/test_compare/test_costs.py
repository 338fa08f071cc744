"""What is measured of arms: counts are right, arms take turns."""

import pytest
import torch
from toy_experiment import ToyModel

from mmpsa import PSA
from mmpsa.compare import costs
from mmpsa.complexity import complexity_of


def test_costs(plan, monkeypatch):
    """Of the batches of the plan, each arm's model in its turn."""
    steps = []
    for kind in ('train_step', 'val_step'):
        original = getattr(ToyModel, kind)

        def step(self, data, *args, kind=kind, original=original):
            pictures = len(data['inputs'])
            psa = any(isinstance(x, PSA) for x in self.modules())
            steps.append((kind, psa, pictures))
            assert self.training == (kind == 'train_step')
            assert torch.is_grad_enabled() == self.training
            return original(self, data, *args)

        monkeypatch.setattr(ToyModel, kind, step)
    ticks = iter(range(10**6))
    monkeypatch.setattr(costs.time, 'perf_counter', lambda: next(ticks))
    found = costs.measure(plan().configs)
    turn = [
        (kind, psa, 4)
        for psa in (False, True)
        for kind in ('train_step', 'val_step')
    ]
    assert steps == turn * (1 + costs.ROUNDS)
    assert found['none']['params'] == 3 * 4 * 9 + 4
    assert found['none']['flops'] == 3 * 4 * 9 * 6 * 6
    assert found['psa']['params'] > found['none']['params']
    assert found['psa']['flops'] > found['none']['flops']
    assert {arm['train'] for arm in found.values()} == {1}
    assert {arm['test'] for arm in found.values()} == {1}


def test_medians_leave_the_first_round_out(plan, monkeypatch):
    monkeypatch.setattr(costs, 'ROUNDS', 1)
    seconds = iter([100, 50, 100, 50, 1, 2, 3, 4])
    monkeypatch.setattr(costs, '_seconds', lambda *_: next(seconds))
    found = costs.measure(plan().configs)
    assert [found['none'][x] for x in ('train', 'test')] == [1, 2]
    assert [found['psa'][x] for x in ('train', 'test')] == [3, 4]


def test_hooks_prepare_the_model(plan):
    """As for a training: a hook may change types and layout."""
    options = "dict(custom_hooks=[dict(type='Widen')])"
    found = costs.measure(plan(options=options).configs)
    assert found['none']['params'] == 2 * (3 * 4 * 9 + 4)


def test_size_of_a_picture_where_the_config_has_none(plan):
    cfg = plan(options='dict(crop_size=None)').configs['none']
    batch = dict(inputs=torch.rand(2, 3, 5, 8), data_samples=[None] * 2)
    assert complexity_of(cfg, batch=batch)[1] == 3 * 4 * 9 * 3 * 6
    with pytest.raises(ValueError, match='must have crop_size'):
        complexity_of(cfg)


def test_a_model_that_cannot_be_traced(plan, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise RuntimeError('no graph')

    monkeypatch.setattr(costs, 'complexity_of', fails)
    found = costs.measure(plan().configs)
    assert found['none']['flops'] is None and found['none']['params'] > 0
    assert 'multiply-adds are not counted: no graph' in capsys.readouterr().out
