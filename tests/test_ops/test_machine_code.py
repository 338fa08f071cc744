"""The kernels as GPUs would run them: no spills, wide loads, short loops.

The machine code is read, not run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmpsa.compatibility import release

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        release(torch.__version__) < (2, 9, 0),
        reason='older compilers of Triton bring older tools',
    ),
]
PAPER = ('paper', 'parallel')
TARGETS = (80, 90, 120)  # the last that the tools of Triton 3.6 read
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
DTYPES = ('float32', 'bfloat16', 'float16')


def read(cases, tmp_path):
    """What ``machine_code.py`` says of kernels."""
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).with_name('machine_code.py'),
            json.dumps(cases),
        ],
        capture_output=True,
        text=True,
        env=dict(
            os.environ,
            TRITON_INTERPRET='0',
            TRITON_CACHE_DIR=str(tmp_path),
            PYTHONPATH=os.pathsep.join(sys.path),
        ),
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows, widths={16}):
    """What every kernel must be; how many of them go over X."""
    passes = 0
    for row in rows:
        assert row['local'] == 0, row
        assert row['most'] <= 16, row
        if row['x']:
            assert set(map(int, row['x'])) == widths, row
            assert row['registers'] <= 128 and row['warps'] <= 8, row
            passes += 1
        else:
            assert row['registers'] * row['warps'] * 32 <= 65536, row
    return passes


@pytest.mark.parametrize('where', SHAPES)
def test_of_networks(where, tmp_path):
    """Float32 on each GPU; other dtypes and channels_last in turn."""
    cases = []
    for i, shape in enumerate(SHAPES[where]):
        for j, target in enumerate(TARGETS):
            dtype = DTYPES[(i + j) % 3]
            cases.append((PAPER, shape, 'float32', False, target))
            cases.append((PAPER, shape, dtype, True, target))
            if dtype != 'float32':
                cases.append((PAPER, shape, dtype, False, target))
    rows = read(cases, tmp_path)
    assert check(rows) == 4 * len(cases)
    for case in cases:
        of_case = [row for row in rows if row['case'] == json.loads(json.dumps(case))]
        if case[1][1] <= 512:  # 3 and 4 launches
            assert len(of_case) == 7
