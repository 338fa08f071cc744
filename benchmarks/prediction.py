"""Predicts times on GPUs from what is launched, without one.

The time of a call is::

    launches × 4 µs + bytes ÷ (80 % of the bandwidth) + waits × 0.5 µs

Bytes are those of the tensors that a launch reads or writes, each once. Waits
are the loads for which a program has to wait one after the other; there are
several in the kernels of this project, and one in each of torch's. Launches
are recorded from what runs, but for those that Inductor would make of SE.
"""

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


@lru_cache(maxsize=None)
def _ttir(key):
    return _LAUNCHES[key].ttir()


_LAUNCHES = {}


def of_psa(shape, dtype, card):
    """The costs of this project's kernels, paper's parallel form."""
    costs = []
    for found in launches(
        ('paper', 'parallel'), shape, dtype, processors=card.processors
    ):
        for launch in found:
            _LAUNCHES.setdefault(launch.key(), launch)
        costs.append(
            total(
                Cost(1, each.bytes, loads(_ttir(each.key()), each)[1])
                for each in found
            )
        )
    return costs[0], total(costs)


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


def table(card, dtype):
    """The prediction for a card, in Markdown; and PSA-p over SE, the largest.

    Returns:
        tuple[str, list[float]]: The table; the ratios, of inference and of
        training.
    """
    lines, worst = [], [0, 0]
    for network, shapes in SHAPES.items():
        for shape in shapes:
            costs = predict(shape, dtype, card)
            cells = [f'{network}, {"×".join(map(str, shape))}']
            for i in range(2):
                times = [
                    1e6 * cost[i].seconds(card) for cost in costs.values()
                ]
                cells += [f'{time:.0f}' for time in times]
                worst[i] = max(worst[i], times[0] / times[1])
                cells.append(f'{times[0] / times[1]:.2f}')
            lines.append(cells)
    head = [*costs, 'PSA-p over SE'] * 2
    lines[:0] = [['µs', *head], ['---', *['--:'] * len(head)]]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines), worst


def markdown(name):
    """The prediction for a card, by its name in ``CARDS``."""
    card, parts = CARDS[name], []
    for dtype in (torch.float32, torch.bfloat16):
        text, (inference, training) = table(card, dtype)
        parts += [
            f'{name}, {str(dtype)[6:]}, predicted: inference, then forward '
            f'and backward. PSA-p takes at most {inference:.2f} and '
            f'{training:.2f} times as long as SE.',
            text,
        ]
    return '\n\n'.join(parts)
