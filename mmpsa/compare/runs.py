"""Trains the runs of a plan that are missing, several at a time."""

import os
import pickle
import subprocess
import sys
import time

import torch

from .costs import measure
from .plan import PlanError, hash_of
from .results import add, read, run_of, write

POLL = 0.2  # seconds


class Runs:
    """The runs of a plan, and ``results.json``, in a folder.

    ``failed`` has the end of the log of each run that failed.

    Raises:
        PlanError: If a run there is of another config, or its evaluations do
            not have the plan's metric.
    """

    def __init__(self, plan, folder):
        self.plan, self.folder, self.failed = plan, folder, {}
        self.path = folder / 'results.json'
        self.hashes = {run: hash_of(plan.config_of(*run)) for run in plan.runs}
        arms = {
            arm: dict(
                beyond_plugins=plan.beyond_plugins(arm),
                other_data=plan.other_data(arm),
            )
            for arm in plan.configs
        }
        self.results = dict(dict(runs=[]), **read(self.path))
        self.results.update(base=plan.base, arms=arms, seeds=plan.seeds)
        self.results.update(metric=plan.metric, rule=plan.rule)
        self.missing = [run for run in plan.runs if not self.take(run)]

    def take(self, run):
        """Whether a run is finished; if so, it is among the results."""
        where = self.folder / name_of(run)
        known = run_of(self.results, *run)
        found = known or read(where / 'run.json')
        if found.get('hash') not in (None, self.hashes[run]):
            raise PlanError(
                f'{where} is of another config ({found["hash"]}) than the '
                f"plan's {name_of(run)} ({self.hashes[run]}). Take another "
                f'--work-dir, or remove {where} and its line in {self.path}'
            )
        for evaluation in found.get('evaluations', ()):
            if self.plan.metric not in evaluation['metrics']:
                names = ', '.join(sorted(evaluation['metrics']))
                raise PlanError(
                    f'the log of {name_of(run)} has no metric '
                    f'{self.plan.metric!r}; it has {names}'
                )
        if not known and found.pop('finished', False):
            add(self.results, found)
            return True
        return known is not None

    def train(self, jobs, resume):
        """Train what is missing; a run that fails does not stop the others.

        ``jobs`` runs at a time have a device each. With ``resume``, cut runs
        go on from their last checkpoint; else they start over.
        """
        free, waiting, running = devices(jobs), list(self.missing), {}
        try:
            while waiting or running:
                while waiting and free:
                    run, device = waiting.pop(0), free.pop(0)
                    process = self.start(run, jobs, device, resume)
                    running[run] = process, device
                    self.tell(waiting, running, jobs)
                time.sleep(POLL)
                for run, (process, device) in [*running.items()]:
                    if process.poll() is not None:
                        del running[run]
                        free.append(device)
                        self.finish(run, process.returncode)
                        self.tell(waiting, running, jobs)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()

    def start(self, run, jobs, device, resume):
        """Start the process of a run."""
        folder, cfg = self.folder / name_of(run), self.plan.config_of(*run)
        folder.mkdir(parents=True, exist_ok=True)
        record, checkpoint = (
            read(folder / 'run.json'),
            folder / 'last_checkpoint',
        )
        if resume and record and checkpoint.exists():
            cfg.resume, cfg.load_from = True, None
        else:
            record = dict(arm=run[0], seed=run[1], hash=self.hashes[run])
            # of an earlier attempt, which nothing goes on from any more
            checkpoint.unlink(missing_ok=True)
        threads = max(1, torch.get_num_threads() // jobs)
        env = {'OMP_NUM_THREADS': str(threads), **os.environ}
        if device is not None:
            env['CUDA_VISIBLE_DEVICES'] = device
        job = folder / 'job.pkl'
        options = dict(cfg=cfg, metric=self.plan.metric, record=record)
        job.write_bytes(pickle.dumps(options))
        command = [sys.executable, '-m', f'{__package__}.train', str(job)]
        with open(folder / 'train.log', 'w') as log:
            out = dict(stdout=log, stderr=subprocess.STDOUT)
            return subprocess.Popen(command, env=env, **out)

    def finish(self, run, status):
        """Keep what a process has left; ``status`` is that of its end."""
        if not self.take(run):
            log = self.folder / name_of(run) / 'train.log'
            lines = log.read_text(errors='replace').split('\n')
            *_, last = ['no output', *filter(str.strip, lines)]
            end = f'status {status}' if status >= 0 else f'signal {-status}'
            self.failed[name_of(run)] = f'{end}, {last} ({log})'
        write(self.path, self.results)

    def tell(self, waiting, running, jobs):
        """A line of progress."""
        rest, failed = len(waiting) + len(running), len(self.failed)
        done = len(self.plan.runs) - rest - failed
        line = f'{done} of {len(self.plan.runs)} runs done, '
        line += f'{len(running)} running, {failed} failed'
        times = [x['seconds'] for x in self.results['runs'] if x['seconds']]
        if times and rest:
            minutes = sum(times) / len(times) * rest / jobs / 60
            line += f', about {minutes:.0f} min left'
        print(line, flush=True)

    def measure(self):
        """Measure what the arms that have runs cost, unless it is known."""
        trained = {run['arm'] for run in self.results['runs']}
        configs = {a: x for a, x in self.plan.configs.items() if a in trained}
        hashes = {arm: hash_of(cfg) for arm, cfg in configs.items()}
        known = self.results.setdefault('costs', {})
        if any(known.get(k, {}).get('hash') != x for k, x in hashes.items()):
            print('measuring costs', flush=True)
            try:
                costs = measure(configs)
            except Exception as error:  # the trainings count without them
                print(f'costs are not measured: {error!r}', flush=True)
                costs = {}
            for arm, cost in costs.items():
                known[arm] = dict(cost, hash=hashes[arm])
        write(self.path, self.results)


def name_of(run):
    """The name of the folder of an arm and a seed."""
    return '{}_seed{}'.format(*run)


def devices(jobs):
    """A device for each job: the number of a GPU, or None for the CPU."""
    count = torch.cuda.device_count()
    if 0 < count < jobs:
        raise PlanError(
            f'--jobs must be at most {count}, the number of GPUs, got {jobs}'
        )
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else map(str, range(count))
    return [*names][:jobs] if count else [None] * jobs
