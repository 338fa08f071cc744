"""Lets plugins draw random numbers that nothing else would have drawn."""

import hashlib
import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch
from torch import nn


@contextmanager
def own_random_numbers(root: nn.Module, name: str) -> Iterator[None]:
    """Seed all generators for one plugin, and put their states back.

    So with one seed, a model with plugins and the model without them get the
    same weights. The generators are Python's, numpy's and torch's: the one of
    the CPU, and those of CUDA if CUDA is initialised.

    The seed depends on the state of torch's generators, on the plugin's name
    and on the first weight of its module. So plugins do not start alike, even
    if nothing draws between two of them, and the same program with the same
    seed gives the same plugins.

    Args:
        root (nn.Module): The module that has the plugin, or will have it.
        name (str): The plugin's name in ``root``.
    """
    python, numpy = random.getstate(), np.random.get_state()
    cpu = torch.default_generator.get_state()
    cuda = (
        torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    )
    digest = hashlib.sha256(f'{name} {_first_weight(root)}'.encode())
    for state in (cpu, *cuda):
        digest.update(bytes(state.tolist()))
    seed = int.from_bytes(digest.digest()[:4], 'big')
    try:
        random.seed(seed)
        np.random.seed(seed)
        # torch.manual_seed would seed CUDA too when CUDA is initialised later.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def _first_weight(module):
    for parameter in module.parameters():
        if parameter.dim() > 1 and not parameter.is_meta:
            return parameter.detach().flatten()[:8].tolist()
    return None
