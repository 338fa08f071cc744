"""The form of the block, and the weights that it takes."""

from typing import List, NamedTuple, Optional

import torch
from torch import Tensor

LAYOUTS = {
    'paper': ('parallel', 'sequential', 'channel', 'spatial'),
    'official': ('parallel', 'sequential'),
}


class Spec(NamedTuple):
    """What a block computes, without its weights.

    ``variant``, ``layout`` and ``mask_scale`` are the same as in
    :class:`mmpsa.PolarizedSelfAttention`.
    """

    variant: str
    layout: str
    mask_scale: float = 1.0

    def check(self) -> None:
        """Refuse a form that does not exist.

        Raises:
            ValueError: If ``variant`` is none of ``LAYOUTS``, ``layout`` is
                none of the variant's, or ``mask_scale`` is not positive.
        """
        if self.variant not in LAYOUTS:
            raise ValueError(
                f'variant must be one of {tuple(LAYOUTS)}, got '
                f'{self.variant!r}'
            )
        if self.layout not in LAYOUTS[self.variant]:
            raise ValueError(
                f'layout must be one of {LAYOUTS[self.variant]} for '
                f'variant={self.variant!r}, got {self.layout!r}'
            )
        if not self.mask_scale > 0:
            raise ValueError(
                f'mask_scale must be positive, got {self.mask_scale!r}'
            )

    @property
    def has_channel(self) -> bool:
        """Whether there is a channel mask."""
        return self.layout != 'spatial'

    @property
    def has_spatial(self) -> bool:
        """Whether there is a spatial mask."""
        return self.layout != 'channel'

    @property
    def has_value_map(self) -> bool:
        """Whether a map of values, N×M×P, has to be computed.

        The authors' sequential code needs it for a softmax over positions.
        """
        return self.variant == 'official' and self.layout == 'sequential'


class Weights(NamedTuple):
    """The weights of the 1×1 convolutions and of LayerNorm.

    M×C in a comment stands for a weight of shape M×C×1×1, whose bias has M
    numbers. C is the number of input channels, M is max(C // 2, 1). LayerNorm
    has C numbers, with a value map M//4. Any floating-point dtype. A weight
    that the spec does not have is None.
    """

    ch_wq: Optional[Tensor] = None  # 1×C, the channel mask's query
    ch_bq: Optional[Tensor] = None
    ch_wv: Optional[Tensor] = None  # M×C
    ch_bv: Optional[Tensor] = None
    ch_wz: Optional[Tensor] = None  # C×M; M//4×M with a value map
    ch_bz: Optional[Tensor] = None
    ln_weight: Optional[Tensor] = None
    ln_bias: Optional[Tensor] = None
    sp_wq: Optional[Tensor] = None  # M×C, the spatial mask's query
    sp_bq: Optional[Tensor] = None
    sp_wv: Optional[Tensor] = None  # M×C
    sp_bv: Optional[Tensor] = None
    ch_wu: Optional[Tensor] = None  # C×M//4, with a value map
    ch_bu: Optional[Tensor] = None


_OFFICIAL = ('ch_wq', 'ch_wv', 'ch_wz', 'sp_wq', 'sp_wv')


def named(tensors: List[Tensor], spec: Spec) -> Weights:
    """Give names to the list of weights that the operator takes.

    Args:
        tensors (list[Tensor]): The weights that ``spec`` has, in order.
        spec (Spec): A spec without a value map.

    Returns:
        Weights: The same weights by name.
    """
    if spec.variant == 'official':
        return Weights(**dict(zip(_OFFICIAL, tensors)))
    first, last = 0 if spec.has_channel else 8, 12 if spec.has_spatial else 8
    return Weights(**dict(zip(Weights._fields[first:last], tensors)))


def sizes(spec: Spec, channels: int) -> List[int]:
    """How many numbers each weight has, in the order of :func:`named`."""
    inner = max(channels // 2, 1)
    square = channels * inner
    if spec.variant == 'official':
        return [channels, square, square, square, square]
    channel = [channels, 1, square, inner, square, *[channels] * 3]
    spatial = [square, inner, square, inner]
    return channel * spec.has_channel + spatial * spec.has_spatial


def result_like(x: Tensor) -> Tensor:
    """An empty tensor for the gated ``x``, NCHW or channels_last."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
