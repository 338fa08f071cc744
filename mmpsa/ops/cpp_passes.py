"""The passes over X in C++, for CPUs: each goes through X in one go.

They take and return what those of :mod:`mmpsa.ops.torch_passes` do, but X and
its gradients in their own dtype, float32 or bfloat16, in NCHW or channels_last
order. Everything else is float32. The source is ``csrc/cpp_passes.cpp``, built
when mmpsa is installed, if there are torch and a compiler then.
"""

import logging
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor

_LIBRARIES = sorted(Path(__file__).parent.glob('_cpp_passes*.so'))
for _library in _LIBRARIES:
    try:
        torch.ops.load_library(_library)
    except OSError as error:  # built for another torch
        print_log(
            f'{_library.name} does not load, torch serves instead: {error}',
            logger='current',
            level=logging.DEBUG,
        )


def is_built() -> bool:
    """Whether the passes were built, and for this torch."""
    return hasattr(torch.ops.mmpsa_cpp, 'pool')


def prepare(x: Tensor) -> Tensor:
    """X, or a gradient, as these passes want it: without gaps."""
    if x.is_contiguous() or x.transpose(1, 2).is_contiguous():
        return x
    return x.contiguous()


def pool(x, query, bias, scale):
    """As :func:`mmpsa.ops.torch_passes.pool`."""
    return torch.ops.mmpsa_cpp.pool(x, query, bias, scale)


def gate(x, channel, query, bias, mask_scale, layout):
    """As :func:`mmpsa.ops.torch_passes.gate`."""
    return torch.ops.mmpsa_cpp.gate(
        x, channel, query, bias, mask_scale, layout
    )


def gate_backward(x, g, *args):
    """As :func:`mmpsa.ops.torch_passes.gate_backward`."""
    return torch.ops.mmpsa_cpp.gate_backward(x, _in_order_of(x, g), *args)


def input_backward(x, g, *args):
    """As :func:`mmpsa.ops.torch_passes.input_backward`."""
    return torch.ops.mmpsa_cpp.input_backward(x, _in_order_of(x, g), *args)


def _in_order_of(x, g):
    if x.is_contiguous():
        return g.contiguous()
    return g.transpose(1, 2).contiguous().transpose(1, 2)
