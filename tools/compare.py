"""Does it help? Compare arms of a config: ``mim run mmpsa compare PLAN``.

docs/compare.md has an example of a plan and of what comes out.
"""

import argparse
import sys
from pathlib import Path

from cli import config_file


def positive(text):
    """The type of an argument: an integer from 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main():
    """Train what is missing, measure the costs, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('plan', help='plan, a Python file')
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder for everything (default: work_dirs/PLAN_NAME)',
    )
    parser.add_argument(
        '--jobs',
        type=positive,
        default=1,
        help='runs at a time, each on a GPU of its own if there are GPUs',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with cut runs from their last checkpoint, instead of '
        'starting over; the report marks them',
    )
    parser.add_argument(
        '--want',
        type=float,
        help='say how many seeds a difference of this size needs',
    )
    args = parser.parse_args()
    folder = args.work_dir or Path('work_dirs', Path(args.plan).stem)

    from mmpsa.compare.plan import PlanError, read_plan
    from mmpsa.compare.report import Report
    from mmpsa.compare.runs import Runs

    try:
        runs = Runs(read_plan(args.plan, config_file), folder)
        runs.train(args.jobs, args.resume)
        runs.measure()
    except (PlanError, argparse.ArgumentTypeError, OSError) as error:
        parser.error(str(error))
    report = Report(runs.results)
    text = report.text(Path(args.plan).stem, args.want)
    (folder / 'report.md').write_text(text)
    report.draw(folder / 'report.png')
    print(f'\n{report.comparison()}\n\n{report.conclusions(args.want)}')
    print(f'\nReport: {folder / "report.md"}')
    for name, reason in runs.failed.items():
        print(f'{name} failed: {reason}', file=sys.stderr)
    sys.exit(bool(runs.failed))


if __name__ == '__main__':
    main()
