"""Write the table of docs/attentions.md: attentions that a name builds.

    python docs/attentions.py

Times are measured by ``python -m benchmarks``.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import nn

from mmpsa import insert_plugins
from mmpsa.complexity import multiply_adds

PAGE = Path(__file__).resolve().parent / 'attentions.md'
SHAPE = 8, 64, 32, 24  # N, C, H, W
PAPERS = {  # type: what it is, and its paper on arXiv
    'PSA': ('Polarized Self-Attention', '2107.00782'),
    'timm_se': ('Squeeze-and-Excitation', '1709.01507'),
    'timm_ese': ('Effective SE, of VoVNetV2', '1911.06667'),
    'timm_eca': ('Efficient Channel Attention', '1910.03151'),
    'timm_ecam': ('ECA with hidden channels', '1910.03151'),
    'timm_ceca': ('ECA with circular padding', '1910.03151'),
    'timm_ge': ('Gather-Excite', '1810.12348'),
    'timm_gc': ('Global Context, as a factor', '1904.11492'),
    'timm_gca': ('Global Context, added', '1904.11492'),
    'timm_cbam': ('Convolutional Block Attention Module', '1807.06521'),
    'timm_lcbam': ("timm's lighter CBAM", '1807.06521'),
    'timm_coord': ('Coordinate Attention', '2103.02907'),
    'timm_scoord': ("timm's simpler Coordinate Attention", '2103.02907'),
    'timm_ela': ('Efficient Local Attention', '2403.01123'),
    'timm_strip': ("timm's Strip Attention, of rows and columns", None),
    'ContextBlock': ('Global Context, added', '1904.11492'),
    'NonLocal2d': ('Non-local block', '1711.07971'),
    'GeneralizedAttention': ('Empirical attention', '1904.05873'),
}
NEEDED = {'ContextBlock': dict(ratio=1 / 16)}


class Place(nn.Module):
    """A module to insert a plugin in."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, SHAPE[1], 1)

    def forward(self, x):
        return self.conv(x)


def start(cfg):
    """How a plugin starts as the identity: by itself, or by γ."""
    place = Place()
    entry = dict(cfg=cfg, modules='conv', identity_init=True)
    insert_plugins(place, [entry])
    by_gamma = any('identity_gamma' in key for key in place.state_dict())
    return 'by γ' if by_gamma else 'by itself'


def row(kind):
    """The cells of a type, without its time."""
    what, paper = PAPERS[kind]
    if paper:
        what = f'[{what}](https://arxiv.org/abs/{paper})'
    cfg = dict(NEEDED.get(kind, {}), type=kind)
    try:
        layer = MODELS.build(dict(cfg, in_channels=SHAPE[1]))
    except TypeError:  # a mistake in this timm
        return [f'`{kind}`', what, '–', '–', '–']
    params = sum(parameter.numel() for parameter in layer.parameters())
    count = multiply_adds(layer.eval(), torch.rand(1, *SHAPE[1:]))
    return [f'`{kind}`', what, f'{params:,}', f'{count:,}', start(cfg)]


def table(times):
    """The table.

    Args:
        times (dict[str, str]): The last cell of each type.
    """
    head = ['`type`', 'what', 'parameters', 'multiply-adds', 'identity']
    lines = [
        [*head, 'time over SE'],
        ['---', '---', '--:', '--:', '---', '--:'],
    ]
    lines += [[*row(kind), times.get(kind, '–')] for kind in PAPERS]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def measure():
    """The time of each type over SE's, by the benchmark."""
    types = [kind for kind in PAPERS if '–' not in row(kind)[2:]]
    types = [kind for kind in types if kind not in NEEDED]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'benchmarks', '--threads', '1']
        command += ['--device', 'cpu', '--dtypes', 'float32', '--network', '']
        command += ['--shapes', 'x'.join(map(str, SHAPE))]
        command += ['--types', *types, '--out', f'{folder}/times']
        subprocess.run(command, check=True, cwd=PAGE.parents[1])
        rows = json.loads(Path(folder, 'times.json').read_text())['rows']
    medians = {
        found['contender']: found['median']
        for found in rows
        if found['mode'] == 'forward+backward'
    }
    return {
        kind: f'{median / medians["timm_se"]:.2f}'
        for kind, median in medians.items()
    }


def times_in(page):
    """The times that stand in the page."""
    return dict(re.findall(r'(?m)^\| `(\w+)` .* \| (\S+) \|$', page))


def write(page, text):
    """Put a text between the marks of a page."""
    before, rest = page.split('<!-- attentions -->\n')
    _, after = rest.split('<!-- end -->')
    return f'{before}<!-- attentions -->\n\n{text}\n\n<!-- end -->{after}'


if __name__ == '__main__':
    PAGE.write_text(write(PAGE.read_text(), table(measure())))
