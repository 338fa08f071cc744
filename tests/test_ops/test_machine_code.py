"""The kernels as a GPU would get them: no spills, wide loads, short loops.

The machine code is read, not run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import KINDS

from mmpsa.compatibility import release

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        release(torch.__version__) < (2, 9, 0),
        reason="older Triton's compiler is called otherwise",
    ),
]
PAPER = ('paper', 'parallel')
VALUE_MAP = ('official', 'sequential')
TARGETS = (80, 90, 'newest')
PASSES = {
    '_pool_kernel',
    '_gate_kernel',
    '_gate_backward_kernel',
    '_input_backward_kernel',
}
DTYPES = ('bfloat16', 'float32', 'float16')
SHAPES = {
    'HRNet-W32': [
        (64, 32, 64, 48),
        (64, 64, 32, 24),
        (64, 128, 16, 12),
        (64, 256, 8, 6),
    ],
    'HRNet-W48': [
        (64, 48, 64, 48),
        (64, 96, 32, 24),
        (64, 192, 16, 12),
        (64, 384, 8, 6),
    ],
    'HRNet-W48, 512×1024': [
        (2, 48, 128, 256),
        (2, 96, 64, 128),
        (2, 192, 32, 64),
        (2, 384, 16, 32),
    ],
    'blocks of ResNet-50': [
        (64, 64, 64, 48),
        (64, 128, 32, 24),
        (64, 256, 16, 12),
        (64, 512, 8, 6),
        (8, 512, 16, 12),
    ],
    'stages of ResNet-50': [
        (64, 256, 64, 48),
        (64, 512, 32, 24),
        (64, 1024, 16, 12),
        (8, 2048, 8, 6),
        (2, 1024, 32, 64),
    ],
}


def read(cases):
    """What ``machine_code.py`` says, by case."""
    script = Path(__file__).with_name('machine_code.py')
    done = subprocess.run(
        [sys.executable, script, json.dumps(cases)],
        capture_output=True,
        text=True,
        env=dict(
            os.environ,
            TRITON_INTERPRET='0',
            PYTHONPATH=os.pathsep.join(sys.path),
        ),
    )
    assert done.returncode == 0, done.stderr
    rows = list(map(json.loads, done.stdout.splitlines()))
    return [
        [row for row in rows if row['case'] == json.loads(json.dumps(case))]
        for case in cases
    ]


def check(rows, width=16, iterations=16):
    """What each kernel must be."""
    for row in rows:
        assert row['local'] == 0, row
        assert row['iterations'] <= iterations, row
        if row['kernel'] in PASSES:
            assert set(row['x']) == {width}, row
            assert row['registers'] <= 128 and row['warps'] <= 8, row
        else:
            assert row['x'] == [], row


@pytest.mark.parametrize('where', SHAPES)
def test_in_networks(where):
    """Each shape in each dtype; each format and each GPU in turn."""
    cases = [
        [PAPER, shape, dtype, (i + j) % 2 == 1, TARGETS[(i + j) % 3]]
        for i, shape in enumerate(SHAPES[where])
        for j, dtype in enumerate(DTYPES)
    ]
    for case, rows in zip(cases, read(cases)):
        check(rows)
        assert sum(row['kernel'] in PASSES for row in rows) == 4
        images, channels, *_ = case[1]
        alone = channels <= (512 if images >= 32 else 384)
        assert len(rows) == (7 if alone else 12)


@pytest.mark.parametrize('channels', [1, 520])
@pytest.mark.parametrize('kind', [k for k in KINDS if k != VALUE_MAP])
def test_every_form(kind, channels):
    shape = (2, channels, 32, 32)
    (rows,) = read([(kind, shape, 'float32', False, 80)])
    check(rows)


@pytest.mark.parametrize(
    'shape, dtype, last, width',
    [
        ((2, 64, 7, 7), 'float32', False, 4),
        ((2, 64, 7, 7), 'bfloat16', False, 2),
        ((2, 64, 7, 7), 'bfloat16', True, 16),
        ((2, 64, 14, 14), 'float32', False, 16),
        ((2, 64, 14, 14), 'bfloat16', False, 8),
        ((2, 36, 7, 7), 'float32', True, 16),
        ((2, 18, 64, 48), 'float16', True, 4),
    ],
)
def test_rows_that_no_wide_load_divides(shape, dtype, last, width):
    """16 bytes where the length of a row in memory allows it."""
    (rows,) = read([(PAPER, shape, dtype, last, 90)])
    widths = {each for row in rows for each in row['x']}
    assert widths == {width}


@pytest.mark.parametrize('last', [False, True])
def test_images_of_more_than_32_bits(last):
    case = (PAPER, (2, 64, 2**13, 2**13), 'bfloat16', last, 90)
    (rows,) = read([case])
    check(rows, iterations=2**20)
    assert [row['is_wide'] for row in rows] == [
        row['kernel'] in PASSES for row in rows
    ]
