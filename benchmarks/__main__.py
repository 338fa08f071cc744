"""Time and memory of PSA, compared with other attention blocks.

    python -m benchmarks
    python -m benchmarks gpu    what to run first on a GPU

Writes tables (NAME.md), a picture (NAME.png) and all figures (NAME.json).
docs/benchmark.md says what is measured, and how.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from mmengine.logging import MMLogger

import mmpsa

from . import report
from .cases import (
    ALIKE,
    BASE,
    CONTENDERS,
    DTYPES,
    NETWORK,
    QUICK_NETWORK,
    QUICK_SHAPES,
    SHAPES,
    TOLERANCE,
    cases,
)
from .measure import compare


def shape_of(text):
    """Four numbers, from ``'8x32x64x48'``."""
    shape = tuple(map(int, text.split('x')))
    if len(shape) != 4 or min(shape) < 1 or shape[1] < 16:
        raise ValueError
    return shape


# argparse puts this name into its error message. C must be at least 16:
# most contenders squeeze C to C // 16.
shape_of.__name__ = 'N×C×H×W with C ≥ 16, as 8x32x64x48,'


def arguments():
    """The command line's."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--device',
        choices=('cpu', 'cuda'),
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='what to measure on (default here: %(default)s)',
    )
    parser.add_argument(
        '--threads', type=int, help="of the CPU (default: torch's)"
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='a few small shapes and a small network, in float32',
    )
    parser.add_argument(
        '--shapes',
        nargs='*',
        action='extend',
        type=shape_of,
        metavar='NxCxHxW',
        help='input shapes of single blocks, instead of the usual ones; '
        '--shapes without values leaves single blocks out',
    )
    parser.add_argument(
        '--types',
        nargs='*',
        action='extend',
        default=[],
        metavar='TYPE',
        help='more plugins to measure as single blocks, as timm_ela',
    )
    parser.add_argument(
        '--network',
        help='the config of a top-down pose estimator instead of HRNet-W32; '
        "'' leaves networks out",
    )
    parser.add_argument('--dtypes', nargs='+', action='extend', choices=DTYPES)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/benchmark'),
        metavar='NAME',
        help='what to write to, without suffix (default: %(default)s)',
    )
    args = parser.parse_args()
    usual = (QUICK_SHAPES, QUICK_NETWORK, ['float32'])
    if not args.quick:
        usual = SHAPES, NETWORK, list(DTYPES)
    for name, value in zip(('shapes', 'network', 'dtypes'), usual):
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def environment_of(device):
    """What figures depend on beside the code."""
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    else:
        name = f'CPU with {torch.backends.cpu.get_cpu_capability()}'
    return dict(
        device=name,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        mmpsa=mmpsa.__version__,
    )


def main():
    """Measure, print, save."""
    args = arguments()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    MMLogger.get_current_instance().setLevel('ERROR')
    torch.manual_seed(0)
    environment = environment_of(args.device)
    print(', '.join(f'{key} {value}' for key, value in environment.items()))
    rounds, seconds = (3, 0.02) if args.quick else (9, 0.1)
    CONTENDERS.update({kind: dict(type=kind) for kind in args.types})
    rows = []
    run = args.shapes, args.network or None, args.dtypes, args.device
    for case, calls in cases(*run):
        found = compare(
            calls,
            BASE[case['part']],
            ALIKE,
            TOLERANCE[case['dtype']],
            args.device,
            rounds,
            seconds,
        )
        rows += [{**case, **row} for row in found]
        print(f'\n{", ".join(case.values())}')
        for row in found:
            print(report.line(row), flush=True)
        # After each case: what was measured is kept whatever comes.
        content = dict(environment=environment, rows=rows)
        figures = json.dumps(content, indent=1, ensure_ascii=False)
        args.out.with_suffix('.json').write_text(figures + '\n')
    text = report.markdown(rows, environment, f'{args.out.name}.png')
    args.out.with_suffix('.md').write_text(text)
    report.draw(rows, args.out.with_suffix('.png'))
    print(f'\nSaved in {args.out}.md, .png and .json')


if __name__ == '__main__':
    if sys.argv[1:2] == ['gpu']:
        from .gpu import main as on_gpu

        on_gpu(sys.argv[2:])
    else:
        main()
