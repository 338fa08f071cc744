"""What the operator and its kernels refuse."""

from typing import List, Tuple

import torch
from torch import Tensor

from .spec import Spec, Weights, saved_shapes, shapes


def check_input(x: Tensor, weights: Weights, spec: Spec) -> None:
    """Refuse an input that does not fit the weights, before a backend runs.

    The operator and :func:`check_weights` check the rest.

    Raises:
        ValueError: If ``x`` is not N×C×H×W with the C of the weights, is of
            integers or complex, or is not on the device of the weights; or
            if there is no such ``spec``.
    """
    spec.check()
    if not x.is_floating_point():
        raise ValueError(
            f'x must be of a floating-point dtype, got {x.dtype}'
            f'{dtype_remedy(x)}'
        )
    name = 'ch_wq' if spec.has_channel else 'sp_wq'
    weight = getattr(weights, name)
    if weight is None:
        raise ValueError(f'weights must have {name} for {spec}, got None')
    if weight.dim() != 4:
        raise ValueError(
            f'{name} must be the weight of a 1×1 convolution, got shape '
            f'{tuple(weight.shape)}'
        )
    channels = weight.shape[1]
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f'x must be N×{channels}×H×W, got {tuple(x.shape)}')
    if x.device != weight.device:
        raise ValueError(
            f'x must be on the device of the weights, {weight.device}, got '
            f'{x.device}; move it with x.to({str(weight.device)!r}), or the '
            'block'
        )


def check_weights(x: Tensor, tensors: List[Tensor], spec: Spec) -> None:
    """Refuse weights that are not those of a spec.

    Args:
        x (Tensor): N×C×H×W, the input.
        tensors (list[Tensor]): The weights in order, without those that
            ``spec`` does not have.
        spec (Spec): What to compute.

    Raises:
        RuntimeError: If their number, or the shape, dtype or device of one,
            is another than ``spec`` and ``x`` ask for; or if ``mask_scale``
            requires a gradient.
    """
    channels = x.shape[1]
    expected = shapes(spec, channels)
    if len(tensors) != len(expected):
        raise RuntimeError(
            f'weights must be {len(expected)} tensors for {spec}, '
            f'{", ".join(expected)}, got {len(tensors)}'
        )
    for tensor, (name, shape) in zip(tensors, expected.items()):
        if tensor.shape != shape:
            raise RuntimeError(
                f'{name} must be of shape {shape} for {spec} and {channels} '
                f'channels, got {tuple(tensor.shape)}'
            )
        if not tensor.is_floating_point():
            raise RuntimeError(
                f'{name} must be of a floating-point dtype, got {tensor.dtype}'
            )
        _check_device(tensor, name, x)
        if name == 'mask_scale' and tensor.requires_grad:
            raise RuntimeError(
                'mask_scale must not require a gradient, because no backend '
                'computes one; keep it a buffer'
            )


def check_forward(
    x: Tensor,
    tensors: List[Tensor],
    spec: Spec,
    dtypes: Tuple[torch.dtype, ...],
) -> None:
    """Refuse what the kernels of ``mmpsa::psa`` cannot read safely.

    ``csrc/contract.h`` is the same for the kernels in C++.

    Args:
        x (Tensor): The input.
        tensors (list[Tensor]): The weights, as the operator takes them.
        spec (Spec): What to compute.
        dtypes (tuple[torch.dtype]): Those of ``x`` that have kernels.

    Raises:
        RuntimeError: If one of the arguments is not as it must be.
    """
    try:
        spec.check()
    except ValueError as error:  # torch's operators raise RuntimeError
        raise RuntimeError(str(error)) from None
    if spec.has_value_map:
        raise RuntimeError(f'{spec} has no kernel')
    if x.dim() != 4:
        raise RuntimeError(f'x must be of shape N×C×H×W, got {tuple(x.shape)}')
    for size in x.shape:
        # Not an `if`: where sizes are symbols, it may have no answer yet.
        torch._check(
            size > 0,
            lambda: f'x must have elements, got shape {tuple(x.shape)}',
        )
    if x.dtype not in dtypes:
        raise RuntimeError(f'x must be of one of {dtypes}, got {x.dtype}')
    check_weights(x, tensors, spec)


def check_backward(
    g: Tensor, x: Tensor, maps: Tensor, vectors: Tensor, spec: Spec
) -> None:
    """Refuse what the backward's kernels cannot read safely.

    :func:`check_forward` comes first.

    Args:
        g (Tensor): The gradient of the output.
        x (Tensor): The input, which has been checked.
        maps (Tensor): What the forward returned.
        vectors (Tensor): What the forward returned.
        spec (Spec): What to compute.

    Raises:
        RuntimeError: If one of the arguments is not as it must be.
    """
    of_maps, of_vectors = saved_shapes(x, spec)
    for name, tensor, shape, dtype in (
        ('g', g, tuple(x.shape), x.dtype),
        ('maps', maps, of_maps, torch.float32),
        ('vectors', vectors, of_vectors, torch.float32),
    ):
        if tensor.shape != shape or tensor.dtype != dtype:
            raise RuntimeError(
                f'{name} must be of shape {shape} and {dtype}, got '
                f'{tuple(tensor.shape)} and {tensor.dtype}'
            )
        _check_device(tensor, name, x)


def _check_device(tensor, name, x):
    if tensor.device != x.device:
        raise RuntimeError(
            f'{name} must be on the device of x, {x.device}, got '
            f'{tensor.device}'
        )


def dtype_remedy(x: Tensor) -> str:
    """The end of an error: what to do with an input of no floating dtype."""
    if x.is_quantized:
        return (
            '. PSA computes in floating point: set psa.qconfig = None before '
            'you prepare the model, and dequantise in front of the block'
        )
    return '; convert it with x.float()'
