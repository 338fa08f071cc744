"""The form of the block, and the weights that it takes."""

from contextlib import nullcontext
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

LAYOUTS = {
    'paper': ('parallel', 'sequential', 'channel', 'spatial'),
    'official': ('parallel', 'sequential'),
}


class Spec(NamedTuple):
    """What a block computes, without its weights.

    ``variant`` and ``layout`` are the same as in
    :class:`mmpsa.PolarizedSelfAttention`.
    """

    variant: str
    layout: str

    def check(self) -> None:
        """Refuse a form that does not exist.

        Raises:
            ValueError: If ``variant`` is none of ``LAYOUTS``, or ``layout``
                is none of the variant's.
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

    @property
    def has_channel(self) -> bool:
        """Whether there is a channel mask."""
        return self.layout != 'spatial'

    @property
    def has_spatial(self) -> bool:
        """Whether there is a spatial mask."""
        return self.layout != 'channel'

    @property
    def has_mask_scale(self) -> bool:
        """Whether the masks are the sigmoids times ``mask_scale``."""
        return self.variant == 'paper' and self.layout != 'parallel'

    @property
    def has_value_map(self) -> bool:
        """Whether a map of values, N×M×P, has to be computed.

        The authors' sequential code needs it for a softmax over positions.
        """
        return self.variant == 'official' and self.layout == 'sequential'


class Weights(NamedTuple):
    """The weights of the 1×1 convolutions and of LayerNorm, ``mask_scale``.

    M×C in a comment stands for a weight of shape M×C×1×1, whose bias has M
    numbers. C is the number of input channels, M is max(C // 2, 1). LayerNorm
    has C numbers, with a value map M//4. Any floating-point dtype. A weight
    that the spec does not have is None.

    ``mask_scale`` is one number, a tensor without dimensions. Each sigmoid
    times it is a mask. No backend computes its gradient, and none copies it
    to the host, so that it may be written at any time.
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
    mask_scale: Optional[Tensor] = None


def shapes(spec: Spec, channels: int) -> Dict[str, Tuple[int, ...]]:
    """The shape of each weight that a spec has, in the operator's order."""
    c, m = channels, max(channels // 2, 1)
    if spec.has_value_map:
        k = m // 4
        return dict(
            ch_wq=(1, c, 1, 1),
            ch_wv=(m, c, 1, 1),
            ch_wz=(k, m, 1, 1),
            ch_bz=(k,),
            ln_weight=(k, 1, 1),
            ln_bias=(k, 1, 1),
            sp_wq=(m, c, 1, 1),
            sp_wv=(m, c, 1, 1),
            ch_wu=(c, k, 1, 1),
            ch_bu=(c,),
        )
    every = dict(
        ch_wq=(1, c, 1, 1),
        ch_bq=(1,),
        ch_wv=(m, c, 1, 1),
        ch_bv=(m,),
        ch_wz=(c, m, 1, 1),
        ch_bz=(c,),
        ln_weight=(c,),
        ln_bias=(c,),
        sp_wq=(m, c, 1, 1),
        sp_bq=(m,),
        sp_wv=(m, c, 1, 1),
        sp_bv=(m,),
    )
    found = {
        name: shape
        for name, shape in every.items()
        if (spec.has_spatial if name[:2] == 'sp' else spec.has_channel)
        and (spec.variant == 'paper' or len(shape) == 4)
    }
    if spec.has_mask_scale:
        found['mask_scale'] = ()  # the last, as it has no gradient
    return found


def by_name(tensors: List[Tensor], spec: Spec) -> Weights:
    """Give names to the list of weights that the operator takes.

    Args:
        tensors (list[Tensor]): The weights that ``spec`` has, in order.
        spec (Spec): What they are for.

    Returns:
        Weights: The same weights by name.
    """
    return Weights(**dict(zip(shapes(spec, 0), tensors)))


def as_list(weights: Weights) -> List[Tensor]:
    """The weights as the operator takes them: those that are there."""
    return [weight for weight in weights if weight is not None]


class Result(NamedTuple):
    """The gated input and its masks; None for a mask that does not exist."""

    y: Tensor  # N×C×H×W
    channel: Optional[Tensor]  # N×C×1×1
    spatial: Optional[Tensor]  # N×1×H×W


def saved_shapes(x: Tensor, spec: Spec) -> Tuple[Tuple[int, ...], ...]:
    """The shapes of what the operator's forward saves, in float32.

    Args:
        x (Tensor): N×C×H×W.
        spec (Spec): What is computed.

    Returns:
        tuple: Of ``maps``, K×N×P: the logits of the channel attention, then
        those of the spatial mask. Of ``vectors``, N×(9C + 8), laid out as in
        ``mmpsa/ops/csrc/cpu.cpp``.
    """
    images, channels, height, width = x.shape
    maps = spec.has_channel + spec.has_spatial
    return (maps, images, height * width), (images, 9 * channels + 8)


def scaled(mask: Tensor, mask_scale: Optional[Tensor]) -> Tensor:
    """A mask: a sigmoid times ``mask_scale``, where there is one."""
    if mask_scale is None:
        return mask
    # A copy is saved for the backward: before it runs, others may write the
    # buffer (DistributedDataParallel does, at each forward).
    return mask * mask_scale.detach().clone()


def result_like(x: Tensor) -> Tensor:
    """An empty tensor for the gated ``x``, NCHW or channels_last."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def without_autocast(x: Tensor):
    """A context in which autocast leaves the dtypes as they are."""
    try:
        return torch.autocast(x.device.type, enabled=False)
    except RuntimeError:
        # This torch has no autocast for the device, so none to leave: `meta`
        # never has, and an older torch knows fewer devices.
        return nullcontext()
