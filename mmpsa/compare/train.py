"""Trains one run and records it: what ``runs.py`` starts a process with."""

import hashlib
import math
import pickle
import sys
import time
from numbers import Real
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

import mmpsa  # noqa: F401
from mmpsa.version import CODEBASES

from .results import write


def start_of(model):
    """What tells the weights of a model from others, by name.

    Args:
        model (nn.Module): The model.

    Returns:
        dict[str, str]: 8 hexadecimal digits for each parameter and buffer.
    """
    found = {}
    for name, tensor in model.state_dict().items():
        data = tensor.detach().cpu().contiguous().reshape(-1)
        digest = hashlib.sha256(f'{tensor.dtype}{[*tensor.shape]}'.encode())
        digest.update(data.view(torch.uint8).numpy().tobytes())
        found[name] = digest.hexdigest()[:8]
    return found


def versions():
    """What a training's figures may depend on."""
    packages = 'torch', 'mmengine', 'mmcv', *CODEBASES, 'mmpsa'
    device = 'CPU'
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    return dict(
        python=sys.version.split()[0],
        **{
            name: sys.modules[name].__version__
            for name in packages
            if name in sys.modules
        },
        device=device,
    )


class RecordHook(Hook):
    """Writes what the report needs of a run to ``run.json``.

    Args:
        path (Path): The file.
        metric (str): The metric that every evaluation must have.
        record (dict): What is known of the run; a resumed one has a start.
    """

    def __init__(self, path, metric, record):
        self.path = path
        self.metric = metric
        self.record = record
        self.began = time.time() - record.get('seconds', 0)

    def before_train(self, runner):
        """Hash the weights; give all arms of a seed the same random numbers.

        Constructors draw from the generators that pictures are changed with.
        """
        record = self.record
        if runner.iter:
            record['resumed'] = True
            record['evaluations'] = [
                found
                for found in record['evaluations']
                if found['iteration'] <= runner.iter
            ]
        else:
            model = runner.model
            record.update(
                start=start_of(getattr(model, 'module', model)), evaluations=[]
            )
            runner.set_randomness(**runner.cfg.randomness)
        record['versions'] = versions()
        self.save()

    def after_val_epoch(self, runner, metrics=None):
        """Keep an evaluation."""
        figures = {
            name: float(value) if math.isfinite(value) else None
            for name, value in metrics.items()
            if isinstance(value, Real)
        }
        self.record['evaluations'].append(
            dict(iteration=runner.iter, metrics=figures)
        )
        self.save()
        if self.metric not in figures:
            raise KeyError(f'the log has no metric {self.metric!r}')

    def after_train(self, runner):
        """The run is finished."""
        evaluations = self.record['evaluations']
        last = evaluations[-1]['iteration'] if evaluations else None
        if last != runner.iter:
            raise RuntimeError(
                f'the training ended at iteration {runner.iter} without an '
                f'evaluation (the last one is of {last}): start it over, '
                'without --resume'
            )
        if torch.cuda.is_available():
            self.record['memory'] = torch.cuda.max_memory_allocated()
        self.record['finished'] = True
        self.save()

    def save(self):
        """Write the file."""
        self.record['seconds'] = round(time.time() - self.began, 1)
        write(self.path, self.record)


def train(cfg, folder, metric, record):
    """Train a run.

    Args:
        cfg (mmengine.Config): Its config.
        folder (str): Where everything of it goes.
        metric (str): See :class:`RecordHook`.
        record (dict): Likewise.
    """
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    cfg.work_dir = folder
    runner = Runner.from_cfg(cfg)
    hook = RecordHook(Path(folder) / 'run.json', metric, record)
    runner.register_hook(hook, priority='LOWEST')
    runner.train()


if __name__ == '__main__':
    train(**pickle.load(sys.stdin.buffer))
