"""Trains the runs of a plan that are missing, several at a time."""

import fcntl
import os
import pickle
import statistics
import subprocess
import sys
import time

import torch

from .costs import measure
from .plan import PlanError, hash_of
from .results import add, read, run_of, write

POLL = 0.2  # seconds


class Runs:
    """The runs of a plan in a folder.

    Args:
        plan (Plan): The plan.
        folder (Path): Holds ``results.json`` and a folder for each run.

    Attributes:
        results (dict): The content of ``results.json``.
        failed (dict[str, str]): Runs that failed, and the end of their log.

    Raises:
        PlanError: If a run there is of another config, or its evaluations do
            not have the plan's metric.
    """

    def __init__(self, plan, folder):
        self.plan = plan
        self.folder = folder
        self.path = folder / 'results.json'
        self.failed = {}
        self.hashes = {run: hash_of(plan.config_of(*run)) for run in plan.runs}
        self.results = dict(dict(runs=[]), **read(self.path))
        self.results.update(
            metric=plan.metric,
            rule=plan.rule,
            base=plan.base,
            arms={
                arm: dict(beyond_plugins=plan.goes_beyond_plugins(arm))
                for arm in plan.configs
            },
            seeds=plan.seeds,
        )
        self.missing = [run for run in plan.runs if not self.take(run)]

    def take(self, run):
        """Whether a run is finished; if so, it is among the results."""
        known = run_of(self.results, *run)
        found = known or self.record_of(run)
        if found.get('hash') not in (None, self.hashes[run]):
            where = self.folder / name_of(run)
            raise PlanError(
                f'{where} is of another config ({found["hash"]}) than the '
                f"plan's {name_of(run)} ({self.hashes[run]}). Take another "
                f'--work-dir, or remove {where} and its line in {self.path}'
            )
        for evaluation in found.get('evaluations', ()):
            if self.plan.metric not in evaluation['metrics']:
                raise PlanError(
                    f'the log of {name_of(run)} has no metric '
                    f'{self.plan.metric!r}; it has '
                    f'{", ".join(sorted(evaluation["metrics"]))}'
                )
        if not known and found.pop('finished', False):
            add(self.results, found)
            return True
        return known is not None

    def record_of(self, run):
        """What the process of a run has recorded so far."""
        return read(self.folder / name_of(run) / 'run.json')

    def train(self, jobs, resume):
        """Train what is missing; a run that fails does not stop the others.

        Args:
            jobs (int): How many runs at a time, each on a device of its own.
            resume (bool): Go on from the last checkpoint of a run that was
                cut; else it starts over.
        """
        free = devices(jobs)
        waiting, running = list(self.missing), {}
        try:
            while waiting or running:
                while waiting and free:
                    run = waiting.pop(0)
                    process = self.start(run, jobs, free[0], resume)
                    running[run] = process, free.pop(0), time.time()
                    self.tell(waiting, running, jobs)
                time.sleep(POLL)
                for run, (process, device, _) in [*running.items()]:
                    if process.poll() is not None:
                        del running[run]
                        free.append(device)
                        self.finish(run, process.returncode)
                        self.tell(waiting, running, jobs)
        finally:
            for process, *_ in running.values():
                process.terminate()

    def start(self, run, jobs, device, resume):
        """Start the process of a run."""
        arm, seed = run
        folder = self.folder / name_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        cfg = self.plan.config_of(*run)
        record = self.record_of(run)
        checkpoint = folder / 'last_checkpoint'
        if resume and record and checkpoint.exists():
            cfg.resume, cfg.load_from = True, None
        else:
            record = dict(arm=arm, seed=seed, hash=self.hashes[run])
            # of an earlier attempt, which nothing goes on from any more
            checkpoint.unlink(missing_ok=True)
        env = dict(os.environ)
        if device is None:
            threads = max(1, torch.get_num_threads() // jobs)
            env.setdefault('OMP_NUM_THREADS', str(threads))
        else:
            env['CUDA_VISIBLE_DEVICES'] = device
        with open(folder / 'train.log', 'a') as log:
            try:  # the process holds it, even if this one is gone
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PlanError(f'another process trains {folder}') from None
            log.truncate(0)
            process = subprocess.Popen(
                [sys.executable, '-m', f'{__package__}.train'],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
            )
        job = dict(
            cfg=cfg,
            folder=str(folder),
            metric=self.plan.metric,
            record=record,
        )
        try:
            with process.stdin as stdin:
                stdin.write(pickle.dumps(job))
        except BrokenPipeError:
            pass  # it failed already; its log says why
        return process

    def finish(self, run, status):
        """Keep what a process has left."""
        if not self.take(run):
            log = self.folder / name_of(run) / 'train.log'
            *_, last = [f'status {status}', *log.read_text().split('\n')[:-1]]
            self.failed[name_of(run)] = f'{last} ({log})'
        self.save()

    def measure(self):
        """Measure what the arms that have runs cost, unless it is known."""
        hashes = {
            arm: hash_of(cfg)
            for arm, cfg in self.plan.configs.items()
            if any(run['arm'] == arm for run in self.results['runs'])
        }
        known = self.results.setdefault('costs', {})
        if known.keys() != hashes.keys() or any(
            known[arm]['hash'] not in (None, hashes[arm]) for arm in hashes
        ):
            print('measuring costs', flush=True)
            found = measure({arm: self.plan.configs[arm] for arm in hashes})
            self.results['costs'] = {
                arm: dict(hash=hashes[arm], **found[arm]) for arm in found
            }
        self.save()

    def tell(self, waiting, running, jobs):
        """A line of progress."""
        done = len(self.plan.runs) - len(waiting) - len(running)
        done -= len(self.failed)
        line = f'{done} of {len(self.plan.runs)} runs done'
        line += f', {len(running)} running'
        if self.failed:
            line += f', {len(self.failed)} failed'
        times = [run.get('seconds') for run in self.results['runs']]
        if any(times):
            each = statistics.mean(filter(None, times))
            spent = sum(time.time() - begun for *_, begun in running.values())
            left = each * (len(waiting) + len(running)) - spent
            line += f', about {max(0, left) / jobs / 60:.0f} min left'
        print(line, flush=True)

    def save(self):
        """Write ``results.json``."""
        write(self.path, self.results)


def name_of(run):
    """The name of the folder of an arm and a seed."""
    return '{}_seed{}'.format(*run)


def devices(jobs):
    """A device for each job: the number of a GPU, or None for the CPU.

    Raises:
        PlanError: If there are fewer GPUs than jobs.
    """
    count = torch.cuda.device_count()
    if not count:
        return [None] * jobs
    if jobs > count:
        raise PlanError(f'--jobs {jobs} needs as many GPUs; there are {count}')
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else map(str, range(count))
    return [*names][:jobs]
