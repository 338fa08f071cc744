"""Polarized Self-Attention, https://arxiv.org/abs/2107.00782."""

import logging
from numbers import Integral
from typing import List, Optional, Union

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule, constant_init
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules.module import _has_any_global_hook

from mmpsa.ops import (
    Masks,
    Spec,
    Weights,
    check_backend,
    choose_backend,
    masks,
    polarized_self_attention,
    reference,
)
from mmpsa.ops.checks import dtype_remedy
from mmpsa.ops.choice import log_backend
from mmpsa.ops.flops import register_flops
from mmpsa.ops.reference import Layers
from mmpsa.ops.spec import by_name, without_autocast

# Parameters by which a block is known in a state dict, and its variant.
SIGNATURES = {
    'ch_wq.weight': 'paper',
    'sp_wq.weight': 'paper',
    'conv_q_right.weight': 'official',
}


# Fake ones are those of an export or a compilation. Other subclasses of
# tensors do something of their own when a layer is called.
_PLAIN = {Tensor, nn.Parameter, FakeTensor}


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
            authors' released code computes. The results are different. The
            parameters have its names (``conv_q_right``, …). It is parallel
            or sequential. Default: ``'paper'``.
        identity_init (bool): Start as exactly the identity function; needs
            ``variant='paper'``. All layouts but ``'parallel'`` then have
            masks of twice the sigmoid. This factor is the buffer
            ``mask_scale``, 1 or 2, which these layouts always have. A block
            takes it from the state dict that it loads. So weights compute the
            same function wherever they are loaded. Default: False.
        backend (str, optional): The backend to prefer, one of
            :data:`mmpsa.ops.BACKENDS`. Where it cannot serve an input, the
            log warns and names the one that does. Without it, the
            environment variable ``MMPSA_BACKEND`` counts when the block is
            built. Without either, the block takes the fastest. Default: None.
        init_cfg (dict or list[dict], optional): As in
            :class:`mmengine.model.BaseModule`. It is applied after the
            block's own initialisation. Default: None.
        device (torch.device or str, optional): Of the parameters, as in
            torch's layers. Default: None.
        dtype (torch.dtype, optional): Of the parameters. Default: None.

    Raises:
        ValueError: If an argument or ``MMPSA_BACKEND`` has a value that is
            not allowed; if the variant does not allow the layout, the number
            of channels or ``identity_init``; or if ``identity_init`` and
            ``init_cfg`` are both given. In ``load_state_dict``: if the
            weights are of another variant or layout, or have a ``mask_scale``
            that the block cannot have. In ``forward`` and ``masks``: if the
            input is not N×``in_channels``×H×W, is not of a floating-point
            dtype, or is not on the device of the weights.
    """

    _abbr_ = 'psa'
    # 2: where the layout has a mask_scale, the state dict has it too. Before,
    # a state dict had it only if it was not 1.
    _version = 2

    def __init__(
        self,
        in_channels: int,
        layout: str = 'parallel',
        variant: str = 'paper',
        identity_init: bool = False,
        backend: Optional[str] = None,
        init_cfg: Union[dict, List[dict], None] = None,
        device: Union[torch.device, str, None] = None,
        dtype: Optional[torch.dtype] = None,
    ):
        super().__init__(init_cfg)
        if (
            not isinstance(in_channels, Integral)  # numpy's, too
            or isinstance(in_channels, bool)
            or in_channels < 1
        ):
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
        self.in_channels: int = int(in_channels)
        self.layout: str = layout
        self.variant: str = variant
        self.identity_init: bool = identity_init
        self.backend: Optional[str] = check_backend(backend)
        make = dict(
            paper=self._make_paper_layers, official=self._make_official_layers
        )
        make[variant](dict(device=device, dtype=dtype))
        # Masks that are added need none: they sum to one at the identity.
        scale = None
        if self.spec.has_mask_scale:
            scale = torch.ones((), device=device, dtype=dtype)
        self.register_buffer('mask_scale', scale)
        self._remember_layers()
        self.reset_parameters()
        register_flops()

    def __setstate__(self, state):
        super().__setstate__(state)
        register_flops()  # a pickle may be the first block of a process

    def _make_paper_layers(self, kind):
        channels, inner = self.in_channels, max(self.in_channels // 2, 1)
        if self.layout != 'spatial':
            self.ch_wv = nn.Conv2d(channels, inner, 1, **kind)
            self.ch_wq = nn.Conv2d(channels, 1, 1, **kind)
            self.ch_wz = nn.Conv2d(inner, channels, 1, **kind)
            self.ln = nn.LayerNorm(channels, **kind)
        if self.layout != 'channel':
            self.sp_wv = nn.Conv2d(channels, inner, 1, **kind)
            self.sp_wq = nn.Conv2d(channels, inner, 1, **kind)

    def _make_official_layers(self, kind):
        channels, inner = self.in_channels, max(self.in_channels // 2, 1)
        self.conv_q_right = nn.Conv2d(channels, 1, 1, bias=False, **kind)
        self.conv_v_right = nn.Conv2d(channels, inner, 1, bias=False, **kind)
        if self.layout == 'parallel':
            self.conv_up = nn.Conv2d(inner, channels, 1, bias=False, **kind)
        else:
            squeezed = inner // 4
            if squeezed < 1:
                raise ValueError(
                    "in_channels must be at least 8 for variant='official' "
                    "and layout='sequential', which squeezes to "
                    f'in_channels // 8 channels, got {channels}'
                )
            self.conv_up = nn.Sequential(
                nn.Conv2d(inner, squeezed, 1, **kind),
                nn.LayerNorm([squeezed, 1, 1], **kind),
                nn.ReLU(),
                nn.Conv2d(squeezed, channels, 1, **kind),
            )
        self.conv_q_left = nn.Conv2d(channels, inner, 1, bias=False, **kind)
        self.conv_v_left = nn.Conv2d(channels, inner, 1, bias=False, **kind)

    def _remember_layers(self):
        """Keep what tells whether a layer is still what it is now.

        In the operator's order: its names, its class, a value that matters
        (``out_channels``, ``eps``, ``inplace``; of a Sequential, how many
        layers), and its parameters, those that are None too.
        """
        up = ['conv_up', 'conv_up.2', 'conv_up.0', 'conv_up.1']
        if self.variant == 'paper':
            order = ['ch_wq', 'ch_wv', 'ch_wz', 'ln', 'sp_wq', 'sp_wv']
        elif self.layout == 'parallel':
            order = ['conv_q_right', 'conv_v_right', 'conv_up']
            order += ['conv_q_left', 'conv_v_left']
        else:
            order = ['conv_q_right', 'conv_v_right', *up]
            order += ['conv_q_left', 'conv_v_left', 'conv_up.3']
        layers = dict(self.named_modules())
        keys = {
            nn.Conv2d: 'out_channels',
            nn.LayerNorm: 'eps',
            nn.ReLU: 'inplace',
        }
        self._made = []
        for name in order:
            if name in layers:
                layer, (first, _, rest) = layers[name], name.partition('.')
                key = keys.get(type(layer))
                parameters = layer._parameters if key else {}
                self._made.append(
                    (
                        first,
                        rest,
                        type(layer),
                        key,
                        getattr(layer, key) if key else len(layer),
                        [k for k, p in parameters.items() if p is not None],
                        [k for k, p in parameters.items() if p is None],
                    )
                )

    def reset_parameters(self):
        """Initialise as the authors trained, or as the identity.

        The weights of convolutions are drawn from N(0, 0.001), as
        ``init_weights`` of the authors' HRNet draws them
        (``semantic-segmentation/network/hrnetv2.py`` of DeLightCMU/PSA).
        Biases are 0. The authors' code sets none, and has them in ``conv_up``
        alone, so those stay torch's own. This sets ``mask_scale`` too.
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
        if self.mask_scale is not None:
            # The identity's sigmoids are 1/2.
            self.mask_scale.fill_(2 if self.identity_init else 1)
        if self.identity_init:
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
        return Spec(self.variant, self.layout)

    @property
    def weights(self) -> Optional[Weights]:
        """The weights by the operator's names.

        None if the block calls its layers instead (see :meth:`forward`).
        """
        tensors = self._plain_tensors()
        return None if tensors is None else self._weights_of(tensors)

    def _weights_of(self, tensors):
        if self.variant == 'official':
            return by_name(tensors, self.spec)
        skipped = (None,) * (8 if self.layout == 'spatial' else 0)
        weights = Weights(*skipped, *tensors)
        scale = self._buffers['mask_scale']
        return weights if scale is None else weights._replace(mask_scale=scale)

    def _plain_tensors(self):
        """The tensors of the layers, in the operator's order.

        Returns:
            list[Tensor] or None: None if a layer is not what the constructor
            made, so that it must be called.
        """
        if _has_any_global_hook():
            return None
        tensors = []
        # Attributes of modules are slow: reading the weights by them took a
        # third of a small forward.
        layers = self.__dict__['_modules']
        for first, rest, kind, key, value, given, absent in self._made:
            layer = layers[first]
            if rest:
                layer = layer.get_submodule(rest)
            state = layer.__dict__
            if (
                type(layer) is not kind
                or state['_forward_hooks']
                or state['_forward_pre_hooks']
                or state['_backward_hooks']
                or state['_backward_pre_hooks']
                or 'forward' in state
                or (state[key] if key else len(layer._modules)) != value
            ):
                return None
            parameters = state['_parameters']
            for name in given:
                tensor = parameters.get(name)
                if type(tensor) not in _PLAIN:
                    return None
                tensors.append(tensor)
            if absent and any(parameters[k] is not None for k in absent):
                return None
        return tensors

    def forward(self, x: Tensor) -> Tensor:
        """Gate ``x``.

        Where every layer is what the constructor made, the operator reads
        their weights. Otherwise the block calls its layers, by the equations
        as they are written: so hooks, adapters, pruning, fake quantisation
        and sharding of a layer count.

        Args:
            x (Tensor): N×C×H×W.

        Returns:
            Tensor: N×C×H×W, of the same dtype.
        """
        weights = self.weights
        if weights is None:
            return self._by_layers(x).y
        return polarized_self_attention(x, weights, self.spec, self.backend)

    def _check_for_layers(self, x):
        right = x.dim() == 4 and x.shape[1] == self.in_channels
        if not (right and x.is_floating_point()):
            raise ValueError(
                f'x must be N×{self.in_channels}×H×W, of a floating-point '
                f'dtype, got {tuple(x.shape)}, {x.dtype}{dtype_remedy(x)}'
            )

    def _by_layers(self, x):
        self._check_for_layers(x)
        log_backend('layers', self.spec, x, self.backend)
        with without_autocast(x):
            return reference.forward(
                x, self._layers(), self.spec, self.mask_scale
            )

    def _layers(self):
        layers = self._modules
        if self.variant == 'paper':
            found = {k: v for k, v in layers.items() if k in Layers._fields}
            return Layers(**found)
        return Layers(
            ch_wq=layers['conv_q_right'],
            ch_wv=layers['conv_v_right'],
            ch_wz=layers['conv_up'],
            sp_wq=layers['conv_q_left'],
            sp_wv=layers['conv_v_left'],
        )

    def __prepare_scriptable__(self):
        # of torch.jit.script
        raise RuntimeError(
            'PSA cannot be scripted: use torch.jit.trace, torch.export or '
            'torch.compile'
        )

    def served_by(self, x: Tensor) -> str:
        """Name the backend that :meth:`forward` would use. Computes nothing.

        Args:
            x (Tensor): N×C×H×W.

        Returns:
            str: One of :data:`mmpsa.ops.BACKENDS`, or ``'layers'`` if the
            block calls its layers.

        Raises:
            ValueError: As in :meth:`forward`.
        """
        weights = self.weights
        if weights is None:
            self._check_for_layers(x)
            return 'layers'
        return choose_backend(x, weights, self.spec, self.backend)

    def masks(self, x: Tensor) -> Masks:
        """The masks with which :meth:`forward` gates ``x``.

        Args:
            x (Tensor): N×C×H×W.

        Returns:
            Masks: ``channel`` (N×C×1×1) and ``spatial`` (N×1×H×W), in float32
            (float64 for a float64 input). A mask that the layout does not
            have is None.
        """
        weights = self.weights
        if weights is None:
            return Masks(*self._by_layers(x)[1:])
        return masks(x, weights, self.spec)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
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
        self._prepare_mask_scale(state_dict, prefix, metadata)
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    def _prepare_mask_scale(self, state_dict, prefix, metadata):
        """Check or complete the ``mask_scale`` of a state dict."""
        key, name = f'{prefix}mask_scale', prefix[:-1] or 'the block'
        saved = _number(state_dict.get(key))
        if self.mask_scale is None:
            state_dict.pop(key, None)
            if saved not in (None, 1):
                raise ValueError(
                    f'{name}: the weights have a mask_scale, {saved:g}. Only '
                    "blocks of variant='paper' and another layout than "
                    "'parallel' have one; build it with the layout of the "
                    'weights'
                )
            return
        own = _number(self.mask_scale)
        if saved is not None and not saved > 0:
            raise ValueError(
                f'{name}: the mask_scale of the weights must be positive, '
                f'got {saved:g}'
            )
        if None not in (saved, own) and saved != own:
            _log(
                f'{name}: mask_scale was {own:g}, and the weights set it to '
                f'{saved:g}',
                logging.INFO,
            )
        if key in state_dict or not any(
            k.startswith(prefix) for k in state_dict
        ):
            return
        version = metadata.get('version')
        if version is not None and version < 2:
            # Of the re-implementation, or saved when 1 was left out.
            state_dict[key] = torch.ones_like(self.mask_scale, device='cpu')
            if own not in (None, 1):
                _log(
                    f'{name}: the weights have no mask_scale, so they were '
                    f'trained with 1. The block had {own:g} and now has 1',
                    logging.WARNING,
                )
        elif version is None and own not in (None, 1):
            _log(
                f'{name}: the weights have no mask_scale, and no record of '
                f'the class that saved them. The block keeps its own, '
                f'{own:g}. If they were trained without one, as those of the '
                're-implementation are, add it: '
                f"state_dict['{key}'] = torch.ones(())",
                logging.WARNING,
            )

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, layout={self.layout!r}, '
            f'variant={self.variant!r}'
        )


def _number(tensor):
    """The value of a tensor; None where there is none, as on ``meta``."""
    try:
        return None if tensor is None else float(tensor)
    except RuntimeError:  # what meta and fake tensors raise
        return None


def _log(line, level):
    print_log(line, logger='current', level=level)
