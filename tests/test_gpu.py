"""``python -m benchmarks gpu``: without a GPU, and as if there were one."""

import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import REPO

from mmpsa.compatibility import release

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        release(torch.__version__) < (2, 9, 0),
        reason="older Triton's compiler is called otherwise",
    ),
]
# Measures on the CPU what it would on a GPU: two shapes, a small network.
REHEARSAL = """
import sys, time
import torch
from benchmarks import cases, gpu

gpu.DEVICE = 'cpu'
gpu.TESTED = gpu.SANITIZED = 1
gpu.SHAPES = {'a network': 4 * [(2, 32, 8, 8)]}
gpu.environment = lambda: 'a rehearsal'
gpu.markdown = lambda card: f'for the {card}'
cases.NETWORK = sys.argv[1]
torch.compile = lambda module, **kwargs: module
torch.cuda.get_device_name = lambda: 'NVIDIA A100-SXM4-80GB'
print('\\n\\n'.join(gpu.measured(time.monotonic())))
"""
NETWORK = 'configs/quickstart/td-hm_res18-w32_1xb16-5e_figures-64x64.py'


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=REPO,
        env=dict(
            os.environ,
            PYTHONPATH=str(REPO),
            OMP_NUM_THREADS='1',
            TRITON_INTERPRET='0',
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu():
    """It says so, and predicts what the docs and the bars say."""
    said, _, prediction = run('-m', 'benchmarks', 'gpu').partition('\n\n')
    assert said == 'torch finds no GPU here, so this is the prediction alone.'
    page = (REPO / 'docs/benchmark.md').read_text()
    _, _, rest = page.partition('<!-- prediction -->')
    assert prediction.strip() == rest.partition('<!-- end -->')[0].strip()
    for mode, most in (('inference', 1.2), ('forward and backward', 1.0)):
        lines = re.findall(rf'(?m)^\| {mode}, \w+ \|(.*)\|$', prediction)
        ratios = [float(cell) for line in lines for cell in line.split('|')]
        assert len(ratios) == 8 and max(ratios) <= most


def test_rehearsal():
    report = run('-c', REHEARSAL, NETWORK)
    for dtype in ('float32', 'bfloat16'):
        title = f'Blocks, {dtype}, µs measured (and predicted for A100):'
        head = (
            '|  | SE | SE, Inductor | PSA-p | PSA-p, torch | PSA-p, Inductor |'
        )
        assert f'{title}\n\n{head}' in report
    measured = re.findall(r'(?m)^\| 2×32×8×8, \S+ \|(.*)\|$', report)
    assert len(measured) == 2 * 2 * 4
    for line in measured:
        cells = [cell.split() for cell in line.split('|')]
        # SE, SE by Inductor and PSA-p are predicted too.
        assert [len(cell) for cell in cells] == [2, 2, 2, 1, 1]
    network = re.findall(
        r'(?m)^\| (training step|inference) \|(.*)\|$', report
    )
    assert len(network) == 2
    assert all(len(cells.split('|')) == 6 for _, cells in network)
    assert 'for the A100' in report and 'stopped after 1 s' in report
