"""What to run first on a GPU: tests of the kernels, times, the prediction.

    python -m benchmarks gpu

Takes at most ten minutes and writes one file in Markdown, to attach to a
report. Without a GPU, it prints the prediction.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.logging import MMLogger

import mmpsa

from . import cases
from .measure import compare
from .prediction import CARDS, SHAPES, markdown, predict

DEVICE = 'cuda'
ROOT = Path(__file__).resolve().parents[1]
PYTEST = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider']
# Seconds from the start at which parts end; blocks finish what they began.
TESTED, SANITIZED, BLOCKS, NETWORKS = 120, 180, 330, 570


def contenders():
    """PSA by its kernels and otherwise, and SE; as plugins by name."""
    usual = cases.CONTENDERS
    return {
        'no attention': None,
        'SE': usual['SE'],
        'SE, Inductor': usual['SE'],
        'PSA-p': usual['PSA-p'],
        'PSA-p, torch': usual['PSA-p, torch'],
        'PSA-p, Inductor': usual['PSA-p, Inductor'],
    }


def environment():
    """What figures depend on beside the code, a line."""
    card = torch.cuda.get_device_properties(0)
    parts = dict(
        GPU=f'{card.name}, {card.multi_processor_count} multiprocessors',
        torch=f'{torch.__version__}, CUDA {torch.version.cuda}',
        triton=__import__('triton').__version__,
        mmpsa=mmpsa.__version__,
    )
    return '; '.join(f'{name} {value}' for name, value in parts.items())


def tests(command, limit):
    """Run tests, and tell their last lines."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(limit, 1),
        )
        lines = done.stdout.splitlines()[-25:]
        lines.append(f'exit code {done.returncode}')
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b'').decode(errors='replace')
        lines = [*printed.splitlines()[-25:], f'stopped after {limit:.0f} s']
    return '\n'.join(['```text', *lines, '```'])


def card_of(name):
    """The card of the prediction that a GPU is most like."""
    known = [card for card in CARDS if card in name]
    return known[0] if known else 'H100'


def alike(dtype):
    """The contenders whose results must match, and how closely."""
    return cases.ALIKE, cases.TOLERANCE[dtype]


def row_of(where, found, predicted=()):
    """A line of a table: microseconds, measured (and predicted)."""
    cells = [where]
    for row in found:
        cell = '–'
        if 'median' in row:
            cell = f'{1e6 * row["median"]:.0f}'
        if row.get('matches') is False:
            cell += ' wrong'
        if row['contender'] in predicted:
            cell += f' ({1e6 * predicted[row["contender"]]:.0f})'
        cells.append(cell)
    return f'| {" | ".join(cells)} |'


def head_of(found):
    """The first lines of the table."""
    names = [row['contender'] for row in found]
    rule = ['---', *['--:'] * len(names)]
    return [f'| {" | ".join(line)} |' for line in (['', *names], rule)]


def blocks(card, is_late):
    """Yield lines of tables: each shape in turn, as long as there is time."""
    # The finest maps of all networks, then the coarsest, then the others.
    shapes = [each[i] for i in (0, 3, 1, 2) for each in SHAPES.values()]
    for dtype in cases.DTYPES:
        lines = []
        for shape in shapes:
            if is_late():
                lines.append('')
                lines.append('There was no time for more.')
                break
            costs = predict(shape, cases.DTYPES[dtype], CARDS[card])
            for i, (mode, calls) in enumerate(
                cases.blocks(shape, dtype, DEVICE)
            ):
                found = compare(calls, 'SE', *alike(dtype), DEVICE, 3, 0.02)
                if not lines:
                    lines = head_of(found)
                predicted = {
                    name: cost[i].seconds(CARDS[card])
                    for name, cost in costs.items()
                }
                where = f'{"×".join(map(str, shape))}, {mode}'
                lines.append(row_of(where, found, predicted))
        yield f'Blocks, {dtype}, µs measured (and predicted for {card}):'
        yield '\n'.join(lines)


def networks():
    """Yield a line, and a table for training and for inference."""
    yield f'{Path(cases.NETWORK).stem}, bfloat16, µs:'
    for mode, calls in cases.networks(cases.NETWORK, 'bfloat16', DEVICE):
        found = compare(
            calls, 'no attention', *alike('bfloat16'), DEVICE, 3, 0.3
        )
        yield '\n'.join([*head_of(found), row_of(mode, found)])


def stop(*_):
    """Ends a part whose time is over."""
    raise TimeoutError


def measured(begun):
    """Yield the parts of the report from a GPU."""

    def left(until):
        return begun + until - time.monotonic()

    yield environment()
    yield '## Tests of the kernels'
    command = [*PYTEST, '-m', 'not slow', '-k', 'triton or pieces']
    if find_spec('xdist'):  # most of the time is the compiler's
        command += ['-n', str(min(os.cpu_count(), 8))]
    yield tests([*command, 'tests/test_ops'], left(TESTED))
    sanitizer = shutil.which('compute-sanitizer')
    yield '## compute-sanitizer'
    if sanitizer is None:
        yield 'It is not installed here.'
    else:
        command = [sanitizer, '--error-exitcode', '1', *PYTEST]
        command += ['-k', 'equals_reference and triton and parallel']
        file = 'tests/test_ops/test_kernels.py'
        yield tests([*command, file], left(SANITIZED))
    name = torch.cuda.get_device_name()
    card = card_of(name)
    cases.CONTENDERS = contenders()
    cases.IN_NETWORKS = tuple(cases.CONTENDERS)
    yield '## Blocks'
    yield from blocks(card, lambda: left(BLOCKS) < 0)
    yield '## A network'
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(max(int(left(NETWORKS)), 1))
    try:
        yield from networks()
    except TimeoutError:
        yield 'There was no time for more.'
    signal.alarm(0)
    yield '## The prediction'
    yield markdown(card)


def main(arguments):
    """The command."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks gpu', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--card',
        choices=CARDS,
        default='H100',
        help='without a GPU, what to predict for (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/gpu.md'),
        help='the file to write (default: %(default)s)',
    )
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print('torch finds no GPU here, so this is the prediction alone.\n')
        print(markdown(args.card))
        return
    MMLogger.get_current_instance().setLevel('ERROR')
    torch._dynamo.config.recompile_limit = 64  # a network's shapes
    args.out.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        '# The kernels on a GPU',
        'Written by `python -m benchmarks gpu`.',
    ]
    for part in measured(time.monotonic()):
        print(part, '\n', flush=True)
        parts.append(part)
        # After each part: what was measured is kept whatever comes.
        args.out.write_text('\n\n'.join(parts) + '\n')
    print(f'Saved in {args.out}: please attach it to a report.')
