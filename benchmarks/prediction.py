"""Predicts times on GPUs from what is launched, without one.

The time of a call is::

    launches × 4 µs + bytes ÷ (80 % of the bandwidth) + waits × 0.5 µs

Bytes are those of the tensors that a launch reads or writes, each once. Waits
are the loads for which a program has to wait one after the other; there are
several in the kernels of this project, and one in each of torch's. Launches
are recorded from what runs, but for those that Inductor would make of SE.
"""

import itertools
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from timm.layers import create_attn
from torch.utils._python_dispatch import TorchDispatchMode

from mmpsa import PolarizedSelfAttention

from .launches import launches, loads

OVERHEAD, WAIT, SHARE = 4e-6, 0.5e-6, 0.8


class Card(NamedTuple):
    """A GPU, by its data sheet."""

    bandwidth: float  # bytes a second
    processors: int


# Bandwidths: nvidia.com/en-us/data-center/a100, /h100 and /h200 (80 GB SXM,
# SXM, SXM). Multiprocessors, and all of the RTX 4090: the white papers of the
# Ampere, Hopper and Ada architectures.
CARDS = {
    'A100': Card(2039e9, 108),
    'H100': Card(3350e9, 132),
    'H200': Card(4800e9, 132),
    'RTX 4090': Card(1008e9, 128),
}
SHAPES = {
    'HRNet-W32, pose': [
        (64, 32, 64, 48),
        (64, 64, 32, 24),
        (64, 128, 16, 12),
        (64, 256, 8, 6),
    ],
    'HRNet-W48, pose': [
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
}
# What launches nothing.
FREE = (
    'aten.view',
    'aten._unsafe_view',
    'aten.expand',
    'aten.detach',
    'aten.unsqueeze',
    'aten.squeeze',
    'aten.transpose',
    'aten.permute',
    'aten.t.',
    'aten.select',
    'aten.slice.',
    'aten.unbind',
    'aten.split',
    'aten.alias',
    'aten.empty',
    'aten.new_empty',
)


class Cost(NamedTuple):
    """What a call does."""

    launches: int
    bytes: int
    waits: int

    def seconds(self, card):
        """The prediction."""
        return (
            self.launches * OVERHEAD
            + self.bytes / (SHARE * card.bandwidth)
            + self.waits * WAIT
        )


def total(costs):
    """The cost of several calls."""
    return Cost(*map(sum, zip(*costs)))


class Recorder(TorchDispatchMode):
    """Sums up what torch's operations launch, one by one."""

    def __init__(self):
        super().__init__()
        self.costs = [Cost(0, 0, 0)]

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        name = str(op)
        if not name.startswith(FREE):
            # With a bias, a convolution adds it in a launch of its own; its
            # backward has one launch for each gradient.
            several = 1
            if name.startswith('aten.convolution_backward'):
                several = sum(args[-1])
            elif name.startswith('aten.convolution'):
                several = 1 + (args[2] is not None)
            tensors = torch.utils._pytree.tree_leaves((args, kwargs, result))
            size = sum(
                min(tensor.nbytes, tensor.untyped_storage().nbytes())
                for tensor in tensors
                if torch.is_tensor(tensor)
            )
            self.costs.append(Cost(several, size, several))
        return result


def of_torch(module, shape, dtype):
    """The costs of a module's forward and backward by eager torch."""
    module.to('meta', dtype)
    x = torch.empty(shape, dtype=dtype, device='meta', requires_grad=True)
    with torch.no_grad(), Recorder() as inference:
        module(x)
    inputs = [x, *module.parameters()]
    with Recorder() as training:
        y = module(x)
        torch.autograd.grad(y, inputs, torch.empty_like(y))
    return total(inference.costs), total(training.costs)


def of_inductor(shape, dtype):
    """The costs of SE as Inductor fuses it.

    Convolutions are calls of a library, each gradient one. Forward: the mean;
    a convolution; bias and ReLU; a convolution; bias, sigmoid and product.
    Backward: the sum of g x with sigmoid's derivative; for each convolution
    two gradients and a bias; ReLU's derivative is in one of the biases; the
    gradient of x.
    """
    x = prod(shape) * dtype.itemsize
    forward, backward = Cost(5, 3 * x, 5), Cost(8, 4 * x, 8)
    return forward, total([forward, backward])


_TTIR = {}  # by what one compilation serves


def of_psa(shape, dtype, card):
    """The costs of this project's kernels, paper's parallel form."""

    def cost(launch):
        key = launch.key()
        if key not in _TTIR:
            _TTIR[key] = launch.ttir()
        return Cost(1, launch.bytes, loads(_TTIR[key], launch)[1])

    forward, backward = (
        total(map(cost, found))
        for found in launches(
            ('paper', 'parallel'), shape, dtype, processors=card.processors
        )
    )
    return forward, total([forward, backward])


@lru_cache(maxsize=None)
def predict(shape, dtype, card):
    """The costs by contender: inference, then a training's both directions."""
    channels = shape[1]
    costs = {
        'PSA-p': of_psa(shape, dtype, card),
        'SE': of_torch(create_attn('se', channels), shape, dtype),
        'SE, Inductor': of_inductor(shape, dtype),
    }
    if dtype == torch.float32:
        block = PolarizedSelfAttention(channels, backend='reference')
        costs['PSA-p, reference'] = of_torch(block, shape, dtype)
    return costs


MODES = ('inference', 'forward and backward')
DTYPES = (torch.float32, torch.bfloat16)


def ratio(costs, mode, card):
    """The time of PSA-p over that of SE, by ``costs`` of :func:`predict`."""
    ours, se = (costs[name][mode].seconds(card) for name in ('PSA-p', 'SE'))
    return ours / se


def table(mode, dtype, card):
    """The prediction for a card in microseconds, in Markdown."""
    lines = []
    for network, shapes in SHAPES.items():
        for shape in shapes:
            costs = predict(shape, dtype, card)
            cells = [f'{network}: {"×".join(map(str, shape))}']
            for cost in costs.values():
                cells.append(f'{1e6 * cost[mode].seconds(card):.0f}')
            lines.append([*cells, f'{ratio(costs, mode, card):.2f}'])
    head = [*costs, 'PSA-p over SE']
    lines[:0] = [['', *head], ['---', *['--:'] * len(head)]]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def ratios():
    """The largest ratio of PSA-p to SE for every card, in Markdown."""
    lines = [['', *CARDS], ['---', *['--:'] * len(CARDS)]]
    for mode, dtype in itertools.product(range(2), DTYPES):
        cells = [f'{MODES[mode]}, {str(dtype)[6:]}']
        for card in CARDS.values():
            most = max(
                ratio(predict(shape, dtype, card), mode, card)
                for shapes in SHAPES.values()
                for shape in shapes
            )
            cells.append(f'{most:.2f}')
        lines.append(cells)
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def markdown(name):
    """The prediction for a card, by its name in ``CARDS``."""
    parts = []
    for mode, dtype in itertools.product(range(2), DTYPES):
        parts.append(f'{name}, {MODES[mode]}, {str(dtype)[6:]}, µs:')
        parts.append(table(mode, dtype, CARDS[name]))
    parts.append('The most that PSA-p takes over SE at these shapes:')
    parts.append(ratios())
    return '\n\n'.join(parts)
