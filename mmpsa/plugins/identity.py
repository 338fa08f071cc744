"""Lets any plugin start as the identity."""

import copy
from itertools import product
from typing import List, NamedTuple, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .extension import Extension, extend
from .maps import check_shape
from .randomness import own_random_numbers

GAMMA = 'identity_gamma'


class Trial(NamedTuple):
    """What a plugin does with a map."""

    x: Tensor
    given: Tensor  # a copy of x that the plugin got, and may have changed
    output: Tensor


@torch.no_grad()
def _try(layer, in_channels) -> Optional[List[Trial]]:
    """Run copies of a plugin in both modes, on maps of two sizes.

    Returns:
        list[Trial] or None: None if the plugin raised anything, or has no
        numbers (``meta``).
    """
    trials = []
    try:
        like = next(layer.parameters(), torch.empty(0))
        if like.is_meta:
            return None
        with own_random_numbers(layer, 'trial'):
            for training, size in product((False, True), ((8, 8), (16, 24))):
                x = torch.randn(2, in_channels, *size).to(like)
                given = x.clone()
                # a copy, because running statistics of norms would change
                run = copy.deepcopy(layer).train(training)
                trials.append(Trial(x, given, run(given)))
    except Exception:
        return None
    return trials


def is_identity(layer: nn.Module, in_channels: int) -> bool:
    """Whether a plugin is known to return its input."""
    trials = _try(layer, in_channels)
    return bool(trials) and all(
        isinstance(output, Tensor) and torch.equal(output, x)
        for x, _, output in trials
    )


def start_as_identity(layer: nn.Module, in_channels: int) -> None:
    """Turn a plugin ``f`` into ``x + γ(f(x) - x)``, where γ starts at 0.

    γ is one more parameter, ``identity_gamma``. The other keys stay.

    Args:
        layer (nn.Module): The plugin.
        in_channels (int): C of the N×C×H×W maps that it takes.
    """
    trials = _try(layer, in_channels)
    layer.may_change_input = trials is None or any(
        not torch.equal(given, x) for x, given, _ in trials
    )
    like = next(layer.parameters(), torch.empty(0))
    gamma = torch.zeros((), dtype=like.dtype, device=like.device)
    layer.register_parameter(GAMMA, nn.Parameter(gamma))
    extend(layer, FromIdentity)


class FromIdentity(Extension):
    """A plugin that starts as the identity.

    A module around the plugin would add a prefix to its keys.
    """

    def forward(self, x):
        forward = self.chosen_or(super().forward)
        y = forward(x.clone() if self.may_change_input else x)
        check_shape(self, x, y)
        return x + self.identity_gamma * (y - x)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        key = prefix + GAMMA
        if key not in state_dict and any(
            other.startswith(prefix) for other in state_dict
        ):
            state_dict[key] = torch.ones_like(self.identity_gamma)
            print_log(
                f'{prefix[:-1] or "a plugin"}: the state dict has its weights '
                f'but no {GAMMA}, so it was trained without; {GAMMA} is 1 now',
                logger='current',
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
