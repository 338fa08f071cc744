"""What each arm costs: parameters, multiply-adds, time of a step."""

import copy
import statistics
import tempfile
import time

import torch
from mmengine.device import get_device
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from ..complexity import complexity_of

ROUNDS = 9


def measure(configs):
    """Measure arms in turn, in this process.

    Args:
        configs (dict[str, mmengine.Config]): Of each arm.

    Returns:
        dict[str, dict]: Of each arm ``params``; ``flops``, multiply-adds for
        a picture, None where the model cannot be traced; ``train`` and
        ``test``, the median seconds of a step with a batch.
    """
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            arm: _Arm(cfg, f'{folder}/{arm}') for arm, cfg in configs.items()
        }
        times = {arm: ([], []) for arm in arms}
        for arm in [*arms] * (1 + ROUNDS):  # a round to warm up
            for step, found in zip(
                (arms[arm].train, arms[arm].test), times[arm]
            ):
                found.append(step())
    return {
        arm: dict(
            found.complexity,
            **{
                name: round(statistics.median(values[1:]), 6)
                for name, values in zip(('train', 'test'), times[arm])
            },
        )
        for arm, found in arms.items()
    }


class _Arm:
    """An arm's model and a batch of each kind."""

    def __init__(self, cfg, folder):
        if cfg.get('custom_imports'):
            import_modules_from_strings(**cfg.custom_imports)
        cfg = cfg.copy()
        cfg.work_dir, cfg.log_level = folder, 'ERROR'
        cfg.experiment_name = folder  # no other runner's logger
        runner = Runner.from_cfg(cfg)
        self.model = runner.model
        self.optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.optim_wrapper = self.optimizer
        # hooks there may change the model's types and layout
        runner.call_hook('before_run')
        self.batches = [
            next(
                iter(
                    Runner.build_dataloader(
                        dict(loader, num_workers=0, persistent_workers=False),
                        seed=0,
                    )
                )
            )
            for loader in (cfg.train_dataloader, cfg.val_dataloader)
        ]
        self.complexity = self._complexity(cfg)

    def _complexity(self, cfg):
        batch = self.model.data_preprocessor(copy.deepcopy(self.batches[1]))
        params = sum(x.numel() for x in self.model.parameters())
        try:
            _, flops = complexity_of(cfg, batch=batch)
        except Exception as error:  # of a model that cannot be traced
            print(f'multiply-adds are not counted: {error}')
            flops = None
        return dict(params=params, flops=flops)

    def train(self):
        """Seconds of a training step."""
        self.model.train()
        return _seconds(self.model.train_step, self.batches[0], self.optimizer)

    def test(self):
        """Seconds of a test step."""
        self.model.eval()
        with torch.no_grad():
            return _seconds(self.model.val_step, self.batches[1])


def _seconds(step, batch, *others):
    batch = copy.deepcopy(batch)
    _wait()
    start = time.perf_counter()
    step(batch, *others)
    _wait()
    return time.perf_counter() - start


def _wait():
    if get_device() == 'cuda':
        torch.cuda.synchronize()
