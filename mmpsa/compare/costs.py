"""What each arm costs: parameters, multiply-adds, time of a step."""

import copy
import tempfile
import time
from statistics import median

import torch
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from ..complexity import complexity_of
from .train import NO_IMPORTS

ROUNDS = 9
STEPS = 'train', 'test'


def measure(configs):
    """Measure arms in turn, in this process.

    Args:
        configs (dict[str, mmengine.Config]): Of each arm.

    Returns:
        dict[str, dict]: Of each arm ``params``; ``flops``, the multiply-adds
        for a picture, None where the model cannot be traced; ``train`` and
        ``test``, the median seconds of a step with a batch.
    """
    costs, times = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for arm, cfg in configs.items():
            costs[arm], *steps = _prepare(cfg, f'{folder}/{arm}')
            times.update(
                {(arm, x): (step, []) for x, step in zip(STEPS, steps)}
            )
        for step, seconds in [*times.values()] * (1 + ROUNDS):
            seconds.append(step())
    for (arm, name), (_, seconds) in times.items():
        costs[arm][name] = round(median(seconds[1:]), 6)  # one to warm up
    return costs


def _prepare(cfg, folder):
    import_modules_from_strings(**cfg.get('custom_imports') or NO_IMPORTS)
    cfg = cfg.copy()
    cfg.work_dir = cfg.experiment_name = folder
    cfg.log_level = 'ERROR'
    runner = Runner.from_cfg(cfg)
    model = runner.model
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper = optimizer
    runner.call_hook('before_run')  # hooks may change types and layout
    loading = dict(num_workers=0)
    loading.update(persistent_workers=False, prefetch_factor=None)
    pictures, others = (
        next(iter(Runner.build_dataloader(dict(loader, **loading), seed=0)))
        for loader in (cfg.train_dataloader, cfg.val_dataloader)
    )
    cost = dict(params=sum(x.numel() for x in model.parameters()), flops=None)
    try:
        batch = model.data_preprocessor(copy.deepcopy(others))
        cost['flops'] = complexity_of(cfg, batch=batch)[1]
    except Exception as error:  # of a model that cannot be traced
        print(f'multiply-adds are not counted: {error}')

    def train():
        model.train()
        return _seconds(model.train_step, pictures, optimizer)

    @torch.no_grad()
    def test():
        model.eval()
        return _seconds(model.val_step, others)

    return cost, train, test


def _seconds(step, batch, *others):
    batch = copy.deepcopy(batch)
    wait = torch.cuda.synchronize if torch.cuda.is_available() else int
    wait()
    start = time.perf_counter()
    step(batch, *others)
    wait()
    return time.perf_counter() - start
