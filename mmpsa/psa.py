"""Polarized Self-Attention, https://arxiv.org/abs/2107.00782."""

from typing import List, Optional, Union

import torch
from mmengine.model import BaseModule, constant_init
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmpsa.ops import (
    Masks,
    Spec,
    Weights,
    check_backend,
    choose_backend,
    masks,
    polarized_self_attention,
)

# Parameters by which a block is known in a state dict, and its variant.
SIGNATURES = {
    'ch_wq.weight': 'paper',
    'sp_wq.weight': 'paper',
    'conv_q_right.weight': 'official',
}


@MODELS.register_module(name=['PolarizedSelfAttention', 'PSA'])
class PolarizedSelfAttention(BaseModule):
    """Polarized Self-Attention (PSA) block.

    Two masks gate the input X: a channel mask (N×C×1×1) and a spatial mask
    (N×1×H×W). Each collapses one dimension completely and keeps the other.
    The parallel layout computes ``X⊙ch(X) + X⊙sp(X)``, the sequential one
    ``Y⊙sp(Y)`` with ``Y = X⊙ch(X)`` (paper, section 3.2). The output has the
    shape, dtype and device of the input. Reductions, softmaxes and LayerNorm
    are computed in float32 at least, with autocast or without.

    Args:
        in_channels (int): C, the channels of the input.
        layout (str): ``'parallel'``, ``'sequential'``, or one mask alone:
            ``'channel'`` or ``'spatial'`` (the paper's ablations).
            Default: ``'parallel'``.
        variant (str): ``'paper'`` computes the paper's equations. Every
            convolution has a bias. The parameters have the names of the
            widely used re-implementation (``ch_wv``, ``sp_wq``, …), whose
            state dicts load as they are. ``'official'`` computes what the
            authors' released code computes, which is something else. The
            parameters have its names (``conv_q_right``, …). It is parallel
            or sequential. Default: ``'paper'``.
        identity_init (bool): Start as exactly the identity function; needs
            ``variant='paper'``. All layouts but ``'parallel'`` then have
            masks of twice the sigmoid. This factor is saved with the weights
            as ``mask_scale``, and a block takes it from the state dict that
            it loads. So weights compute the same function wherever they are
            loaded. Default: False.
        backend (str, optional): The backend to use if it can serve: one of
            :data:`mmpsa.ops.BACKENDS`. Without it, the environment variable
            ``MMPSA_BACKEND`` counts when the block is built. Without either,
            the block takes the fastest. Default: None.
        init_cfg (dict or list[dict], optional): As in
            :class:`mmengine.model.BaseModule`. It is applied after the
            block's own initialisation. Default: None.

    Raises:
        ValueError: If an argument or ``MMPSA_BACKEND`` has a value that is
            not allowed; if the variant does not allow the layout, the number
            of channels or ``identity_init``; or if ``identity_init`` and
            ``init_cfg`` are both given. In ``load_state_dict``: if the
            weights are of another variant or layout. In ``forward`` and
            ``masks``: if the input is not N×``in_channels``×H×W, is not of a
            floating-point dtype, or is not on the device of the weights.
    """

    _abbr_ = 'psa'

    def __init__(
        self,
        in_channels: int,
        layout: str = 'parallel',
        variant: str = 'paper',
        identity_init: bool = False,
        backend: Optional[str] = None,
        init_cfg: Union[dict, List[dict], None] = None,
    ):
        super().__init__(init_cfg)
        if type(in_channels) is not int or in_channels < 1:  # nor a bool
            raise ValueError(
                f'in_channels must be a positive int, got {in_channels!r}'
            )
        Spec(variant, layout).check()
        if not isinstance(identity_init, bool):
            raise ValueError(
                f'identity_init must be a bool, got {identity_init!r}'
            )
        if identity_init and variant != 'paper':
            raise ValueError(
                "identity_init needs variant='paper', got "
                f"{variant!r}: the authors' code has no such start"
            )
        if identity_init and init_cfg is not None:
            raise ValueError(
                'identity_init and init_cfg exclude each other, '
                f'got init_cfg={init_cfg!r}'
            )
        self.in_channels = in_channels
        self.layout = layout
        self.variant = variant
        self.identity_init = identity_init
        self.backend = check_backend(backend)
        if variant == 'paper':
            self._make_paper_layers()
        else:
            self._make_official_layers()
        self.reset_parameters()

    def _make_paper_layers(self):
        channels, inner = self.in_channels, max(self.in_channels // 2, 1)
        if self.layout != 'spatial':
            self.ch_wv = nn.Conv2d(channels, inner, 1)
            self.ch_wq = nn.Conv2d(channels, 1, 1)
            self.ch_wz = nn.Conv2d(inner, channels, 1)
            self.ln = nn.LayerNorm(channels)
        if self.layout != 'channel':
            self.sp_wv = nn.Conv2d(channels, inner, 1)
            self.sp_wq = nn.Conv2d(channels, inner, 1)

    def _make_official_layers(self):
        channels, inner = self.in_channels, max(self.in_channels // 2, 1)
        self.conv_q_right = nn.Conv2d(channels, 1, 1, bias=False)
        self.conv_v_right = nn.Conv2d(channels, inner, 1, bias=False)
        if self.layout == 'parallel':
            self.conv_up = nn.Conv2d(inner, channels, 1, bias=False)
        else:
            squeezed = inner // 4
            if squeezed < 1:
                raise ValueError(
                    "in_channels must be at least 8 for variant='official' "
                    "and layout='sequential', which squeezes to "
                    f'in_channels // 8 channels, got {channels}'
                )
            self.conv_up = nn.Sequential(
                nn.Conv2d(inner, squeezed, 1),
                nn.LayerNorm([squeezed, 1, 1]),
                nn.ReLU(inplace=True),
                nn.Conv2d(squeezed, channels, 1),
            )
        self.conv_q_left = nn.Conv2d(channels, inner, 1, bias=False)
        self.conv_v_left = nn.Conv2d(channels, inner, 1, bias=False)

    def reset_parameters(self):
        """Initialise as the authors trained, or as the identity.

        The weights of convolutions are drawn from N(0, 0.001) and their
        biases are 0, as ``init_weights`` of the authors' HRNet leaves them
        (``semantic-segmentation/network/hrnetv2.py`` of DeLightCMU/PSA). It
        sets no biases, so those of ``conv_up`` stay torch's own. This sets
        ``mask_scale`` too.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                if name.startswith('conv_up'):
                    module.reset_parameters()
                elif module.bias is not None:
                    nn.init.zeros_(module.bias)
                nn.init.normal_(module.weight, std=0.001)
        self.mask_scale = 1.0
        if self.identity_init:
            if self.layout != 'parallel':
                # sigmoid(0) = 1/2: parallel masks sum to one, these do not.
                self.mask_scale = 2.0
            if self.layout != 'spatial':
                constant_init(self.ln, 0)
            if self.layout != 'channel':
                constant_init(self.sp_wv, 0)

    def init_weights(self):
        """Initialise the weights, then apply ``init_cfg``; only once."""
        if not self.is_init:
            self.reset_parameters()
        super().init_weights()

    @property
    def spec(self) -> Spec:
        """What the block computes, without its weights."""
        return Spec(self.variant, self.layout, self.mask_scale)

    @property
    def weights(self) -> Weights:
        """The weights by the operator's names."""
        if self.variant == 'official':
            return self._official_weights()
        names: List[str] = []
        if self.layout != 'spatial':
            names += 'ch_wq', 'ch_wv', 'ch_wz', 'ln'
        if self.layout != 'channel':
            names += 'sp_wq', 'sp_wv'
        # Attributes of modules are slow: this is a sixth of a small forward.
        layers = [self._modules[name] for name in names]
        tensors = [
            tensor for layer in layers for tensor in (layer.weight, layer.bias)
        ]
        skipped = [None] * (8 if self.layout == 'spatial' else 0)
        return Weights(*skipped, *tensors)

    def _official_weights(self):
        up = self.conv_up
        if self.layout == 'parallel':
            ends = dict(ch_wz=up.weight)
        else:
            first, norm, _, last = up
            ends = dict(
                ch_wz=first.weight,
                ch_bz=first.bias,
                ln_weight=norm.weight,
                ln_bias=norm.bias,
                ch_wu=last.weight,
                ch_bu=last.bias,
            )
        return Weights(
            ch_wq=self.conv_q_right.weight,
            ch_wv=self.conv_v_right.weight,
            sp_wq=self.conv_q_left.weight,
            sp_wv=self.conv_v_left.weight,
            **ends,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gate ``x``.

        Args:
            x (Tensor): N×C×H×W.

        Returns:
            Tensor: N×C×H×W, of the same dtype.
        """
        return polarized_self_attention(
            x, self.weights, self.spec, self.backend
        )

    def served_by(self, x: Tensor) -> str:
        """Name the backend that :meth:`forward` would use. Computes nothing.

        Args:
            x (Tensor): N×C×H×W.

        Returns:
            str: One of :data:`mmpsa.ops.BACKENDS`.

        Raises:
            ValueError: As in :meth:`forward`.
        """
        return choose_backend(x, self.weights, self.spec, self.backend)

    def masks(self, x: Tensor) -> Masks:
        """The masks with which :meth:`forward` gates ``x``.

        Args:
            x (Tensor): N×C×H×W.

        Returns:
            Masks: ``channel`` (N×C×1×1) and ``spatial`` (N×1×H×W), in float32
            (float64 for a float64 input). A mask that the layout does not
            have is None.
        """
        return masks(x, self.weights, self.spec)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.mask_scale != 1:
            scale = torch.tensor(self.mask_scale)
            destination[prefix + 'mask_scale'] = scale
        # Beside the keys, which stay those of the re-implementation.
        metadata = getattr(destination, '_metadata', None)
        if metadata is not None:
            record = metadata.setdefault(prefix[:-1], {})
            record.update(variant=self.variant, layout=self.layout)

    def _load_from_state_dict(self, state_dict, prefix, metadata, *args):
        for name in ('variant', 'layout'):
            ours, saved = getattr(self, name), metadata.get(name)
            if saved not in (None, ours):
                raise ValueError(
                    f'{prefix[:-1] or "the block"}: the weights are of '
                    f'{name}={saved!r}, the block is of {name}={ours!r}; '
                    f'build it with {name}={saved!r}, or delete the '
                    "state dict's _metadata to load them all the same"
                )
        scale = state_dict.pop(prefix + 'mask_scale', None)
        if scale is not None:
            if self.layout == 'parallel' or self.variant == 'official':
                raise ValueError(
                    f'{prefix[:-1] or "the block"}: the weights have a '
                    f'mask_scale, {float(scale):g}. Only blocks of '
                    "variant='paper' and another layout than 'parallel' have "
                    'one; build it with the layout of the weights'
                )
            self.mask_scale = float(scale)
        elif any(key.startswith(prefix) for key in state_dict):
            # Weights saved without a factor were trained without one.
            self.mask_scale = 1.0
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, layout={self.layout!r}, '
            f'variant={self.variant!r}, mask_scale={self.mask_scale:g}'
        )
