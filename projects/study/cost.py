"""Measure what each compared arm costs, the arms in turn, on one core.

    python -m projects.study.cost [TASK ...]

Parameters, GFLOPs, and the median seconds of a training step and of a test
step on the study's own batches go to ``projects/study/cost.json``. Needs the
data, and a machine that does nothing else.
"""

import argparse
import copy
import json
import statistics
import time

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from mmpsa.complexity import complexity_of

from .modules import fast_on_cpu
from .runs import COMPARED, COSTS, MAIN, config_of

ROUNDS = 9


def batch_of(loader):
    """The first batch of a data loader's config."""
    loader = dict(loader, num_workers=0, persistent_workers=False)
    return next(iter(Runner.build_dataloader(loader, seed=0)))


def steps_of(task, arm):
    """A training step and a test step, as functions of their batches."""
    cfg = config_of(task, arm, seed=0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    fast_on_cpu(model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)

    def train(batch):
        model.train()
        model.train_step(batch, wrapper)

    def test(batch):
        model.eval()
        with torch.no_grad():
            model.test_step(batch)

    return train, test


def seconds(task):
    """Median seconds of both steps, by arm."""
    cfg = config_of(task, 'none', seed=0)
    times = {arm: ([], []) for arm in COMPARED}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loaders = cfg.train_dataloader, cfg.test_dataloader
        batches = [batch_of(loader) for loader in loaders]
        steps = {arm: steps_of(task, arm) for arm in COMPARED}
        for arm in COMPARED * (1 + ROUNDS):  # a round to warm up
            for step, batch, found in zip(steps[arm], batches, times[arm]):
                batch = copy.deepcopy(batch)
                start = time.perf_counter()
                step(batch)
                found.append(time.perf_counter() - start)
    return {
        arm: [statistics.median(found[1:]) for found in both]
        for arm, both in times.items()
    }


def main():
    """Measure the arms of the tasks on the command line, or of all."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('tasks', nargs='*', default=MAIN, metavar='TASK')
    tasks = parser.parse_args().tasks
    torch.set_num_threads(1)
    costs = json.loads(COSTS.read_text())
    for task in tasks:
        costs[task] = {}
        for arm, (train, test) in seconds(task).items():
            cfg = config_of(task, arm, seed=0)
            params, flops = complexity_of(cfg)
            costs[task][arm] = dict(
                params=params, flops=flops, train=train, test=test
            )
    COSTS.write_text(json.dumps(costs, indent=1) + '\n')


if __name__ == '__main__':
    main()
