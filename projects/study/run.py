"""Train the runs of the study that have no log yet, in order of importance.

    python -m projects.study.run --jobs 4

Each is one ``mim train mmpsa``. A run that was cut off goes on from its last
checkpoint; one that is done leaves its log (mmengine's JSON lines) in
``projects/study/logs`` and its checkpoint in ``work_dirs/study``. Several of
these scripts may share the work.
"""

import argparse
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .runs import LOGS, REPO, config_of, name_of, plan

WORK = Path('work_dirs/study')  # in the repository, where all of it runs


def train(run):
    """Train one run to its end and keep its log.

    Returns:
        int: the exit status of ``mim train``.
    """
    name = name_of(*run)
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / 'config.py'
    mim = Path(sys.executable).with_name('mim')
    command = [mim, 'train', 'mmpsa', config, '--work-dir', folder, '--resume']
    with open(folder / 'train.log', 'a') as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0  # another process trains it
        if log_of(run).exists():
            return 0  # and another has
        config_of(*run).dump(config)
        status = subprocess.call(
            command,
            env=dict(os.environ, PYTHONPATH=str(REPO), OMP_NUM_THREADS='1'),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        if not status:
            keep_log(run, folder)
    print(name, f'failed, see {log.name}' if status else 'done', flush=True)
    return status


def keep_log(run, folder):
    """Join the logs of a run's attempts, the oldest first, into its log."""
    parts = sorted(folder.glob('*/vis_data/scalars.json'))
    text = ''.join(part.read_text() for part in parts)
    log_of(run).write_text(text)


def log_of(run):
    """Where the log of a finished run is kept."""
    return LOGS / f'{name_of(*run)}.json'


def main():
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--jobs', type=int, default=1, help='runs at a time; each takes a core'
    )
    parser.add_argument(
        '--only', default='', help='runs whose name has this in it'
    )
    args = parser.parse_args()
    os.chdir(REPO)
    LOGS.mkdir(exist_ok=True)
    names = {name_of(*run): run for run in plan()}
    pending = [
        run
        for name, run in names.items()
        if args.only in name and not log_of(run).exists()
    ]
    print(f'{len(pending)} of {len(names)} runs to train', flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        sys.exit(any([*pool.map(train, pending)]))


if __name__ == '__main__':
    main()
