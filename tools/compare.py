"""Does it help? Compare arms of a config: ``mim run mmpsa compare PLAN``.

docs/compare.md has an example of a plan and of what comes out.
"""

import argparse
import signal
import sys
from pathlib import Path

from cli import config_file


def main():
    """Train what is missing, measure the costs, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('plan', help='plan, a Python file')
    text = 'folder for everything (default: work_dirs/PLAN_NAME)'
    add('--work-dir', type=Path, help=text)
    text = 'runs at a time, each on a GPU of its own if there are GPUs'
    add('--jobs', type=int, default=1, help=text)
    text = 'go on with cut runs from their last checkpoint; the report says so'
    add('--resume', action='store_true', help=text)
    text = 'say how many seeds a difference of this size needs'
    add('--want', type=float, help=text)
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f'--jobs must be 1 or more, got {args.jobs}')
    if args.want is not None and not args.want > 0:
        parser.error(f'--want must be above 0, got {args.want:g}')
    sys.path.append('')  # the runs find modules here, too
    # so that the runs end with this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))
    name = Path(args.plan).stem
    folder = args.work_dir or Path('work_dirs', name)

    from mmpsa.compare.plan import PlanError, read_plan
    from mmpsa.compare.report import Report
    from mmpsa.compare.runs import Runs

    try:
        runs = Runs(read_plan(args.plan, config_file), folder)
        runs.train(args.jobs, args.resume)
        runs.measure()
    except (PlanError, argparse.ArgumentTypeError, OSError) as error:
        parser.error(str(error))
    report, page = Report(runs.results), folder / 'report.md'
    page.write_text(report.text(name, args.want), encoding='utf-8')
    report.draw(folder / 'report.png')
    print(
        f'\n{report.comparison}\n\n{report.conclusions(args.want)}\n\n{page}'
    )
    for run, reason in runs.failed.items():
        print(f'{run} failed: {reason}', file=sys.stderr)
    sys.exit(bool(runs.failed))


if __name__ == '__main__':
    main()
