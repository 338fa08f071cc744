"""Write the table of starts in docs/psa.md: how far a new block is from x."""

from pathlib import Path

import torch
from mmengine.model import kaiming_init
from torch import nn

from mmpsa import PolarizedSelfAttention

PAGE = Path(__file__).resolve().parent / 'psa.md'
BLOCKS = {
    'the paper, parallel': dict(),
    'the paper, sequential': dict(layout='sequential'),
    "the authors' code, parallel": dict(variant='official'),
    "the authors' code, sequential": dict(
        variant='official', layout='sequential'
    ),
}


def paste(block):
    """Initialise a block as the authors' block file does by itself."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Conv2d):
            if name.startswith('conv_up'):
                module.reset_parameters()
            else:
                kaiming_init(module, mode='fan_in')


def distance(block):
    """The multiple of x that is nearest to the block's output, and the rest.

    Returns:
        str: The multiple, and the norm of the difference in percent of it.
    """
    torch.manual_seed(0)
    x = torch.randn(4, 64, 32, 24).relu()
    with torch.no_grad():
        y = block(x)
    factor = (x * y).sum() / (x * x).sum()
    rest = (y - factor * x).norm() / (factor * x).norm()
    return f'{factor:.2f} x, {100 * rest:.1f} %'


def table():
    """The rows, one for each block."""
    lines = [
        '| block | as its file starts it (Kaiming) | as its network does |',
        '|---|--:|--:|',
    ]
    for name, cfg in BLOCKS.items():
        torch.manual_seed(0)
        block = PolarizedSelfAttention(64, **cfg)
        trained = distance(block)
        paste(block)
        lines.append(f'| {name} | {distance(block)} | {trained} |')
    return '\n'.join(lines)


def write(page, text):
    """Put a text between the marks of a page."""
    before, rest = page.split('<!-- start -->\n')
    _, after = rest.split('<!-- end -->')
    return f'{before}<!-- start -->\n\n{text}\n\n<!-- end -->{after}'


if __name__ == '__main__':
    PAGE.write_text(write(PAGE.read_text(), table()))
