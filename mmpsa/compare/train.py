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

from .results import write

NO_IMPORTS = dict(imports=[])
PACKAGES = 'torch mmengine mmcv mmpose mmseg mmdet mmpretrain mmpsa'.split()


def start_of(model):
    """8 digits for each weight and buffer of a model, by name."""
    found = {}
    for name, x in model.state_dict().items():
        digest = hashlib.sha256(f'{x.dtype}{[*x.shape]}'.encode())
        data = x.detach().cpu().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().tobytes())
        found[name] = digest.hexdigest()[:8]
    return found


def versions():
    """What the figures of a training may depend on."""
    found = {
        x: sys.modules[x].__version__ for x in PACKAGES if x in sys.modules
    }
    has_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if has_gpu else 'CPU'
    return dict(python=sys.version.split()[0], **found, device=device)


class RecordHook(Hook):
    """Writes what the report needs of a run to ``run.json``.

    Args:
        path (Path): The file.
        metric (str): The metric that every evaluation must have.
        record (dict): What is known of the run; a resumed one has a start.
    """

    def __init__(self, path, metric, record):
        self.path, self.metric, self.record = path, metric, record
        self.began = time.time() - record.get('seconds', 0)

    def before_train(self, runner):
        """Hash the weights; give all arms of a seed the same random numbers.

        Constructors draw from the generators that augmentations use.
        """
        record = self.record
        if runner.iter:
            record['resumed'] = True
            done = record['evaluations']
            kept = [x for x in done if x['iteration'] <= runner.iter]
            record['evaluations'] = kept
        else:
            record.update(start=start_of(runner.model), evaluations=[])
            runner.set_randomness(**runner.cfg.randomness)
        self.save(versions=versions())

    def after_val_epoch(self, runner, metrics=None):
        """Keep an evaluation."""
        figures = {
            name: float(x) if math.isfinite(x) else None
            for name, x in metrics.items()
            if isinstance(x, Real)
        }
        if not metrics:  # mmdet's, where nothing is detected
            figures = {self.metric: None}
        found = dict(iteration=runner.iter, metrics=figures)
        self.save(evaluations=[*self.record['evaluations'], found])
        if self.metric not in figures:
            raise KeyError(f'the log has no metric {self.metric!r}')

    def after_train(self, runner):
        """The run is finished."""
        evaluated = [x['iteration'] for x in self.record['evaluations']]
        if runner.iter not in evaluated:
            raise RuntimeError(
                f'the end, iteration {runner.iter}, was not evaluated; if the '
                'run was resumed, start it over'
            )
        if torch.cuda.is_available():
            self.record['memory'] = torch.cuda.max_memory_allocated()
        self.save(finished=True)

    def save(self, **more):
        """Add to the record, and write it."""
        seconds = round(time.time() - self.began, 1)
        self.record.update(more, seconds=seconds)
        write(self.path, self.record)


def train(path):
    """Train the run of a file; everything goes where the file is.

    Args:
        path (str): Has ``cfg``, ``metric`` and ``record``, pickled.
    """
    path = Path(path)
    job = pickle.loads(path.read_bytes())
    cfg = job['cfg']
    import_modules_from_strings(**cfg.get('custom_imports') or NO_IMPORTS)
    cfg.work_dir = str(path.parent)
    runner = Runner.from_cfg(cfg)
    hook = RecordHook(path.with_name('run.json'), job['metric'], job['record'])
    runner.register_hook(hook, priority='LOWEST')
    runner.train()


if __name__ == '__main__':
    train(sys.argv[1])
