"""Which kernels this installation has, and what they serve."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Optional

import torch
from torch import Tensor

from mmpsa.compatibility import release

from .spec import Spec

# 'reference' computes the equations line by line, the others compute the
# collapsed form.
BACKENDS = ('reference', 'triton', 'cpp', 'torch')
# What those with kernels serve.
DEVICES = {'cpp': 'cpu', 'triton': 'cuda'}
DTYPES = {
    'triton': (torch.float32, torch.bfloat16, torch.float16),
    'cpp': (torch.float32, torch.bfloat16),
}
TRITON_CHANNELS = 2048

_BUILD = (
    'install torch and a C++ compiler, then run in a checkout of mmpsa: '
    'pip install --no-deps --force-reinstall . (then start Python outside of '
    'the checkout: inside, it imports the sources, which have no extension)'
)


def _find_triton():
    # mmpsa is tested with the versions that torch 2.4 and later bring.
    if find_spec('triton') and release(torch.__version__) >= (2, 4, 0):
        return None
    return 'it needs Triton and torch >=2.4; install both'


def _load_extension():
    extension = find_spec('mmpsa.ops._C')
    if extension is None:
        return f'there is no extension in {Path(__file__).parent}; {_BUILD}'
    try:
        torch.ops.load_library(extension.origin)
    except OSError as error:
        return (
            f'the extension does not load ({error}). If you have changed '
            f'torch, build it again; {_BUILD}'
        )


# Why kernels are missing; None where they are there.
MISSING = {'triton': _find_triton(), 'cpp': _load_extension()}


def backends() -> Dict[str, Optional[str]]:
    """The backends of this installation.

    Returns:
        dict[str, str or None]: For each of ``BACKENDS``, None if it is there,
        otherwise the reason why it is not.
    """
    reasons = {name: MISSING.get(name) for name in BACKENDS}
    for name, device in DEVICES.items():
        if device == 'cuda' and not torch.cuda.is_available():
            reasons[name] = reasons[name] or 'torch finds no CUDA device'
    return reasons


def why_unserved(backend: str, x: Tensor, spec: Spec) -> Optional[str]:
    """Why kernels cannot serve an input; None if they can.

    Args:
        backend (str): One of ``DEVICES``.
        x (Tensor): N×C×H×W.
        spec (Spec): What to compute.
    """
    if x.device.type != DEVICES[backend]:
        return f'it serves {DEVICES[backend]} tensors'
    if spec.has_value_map:
        return "the authors' sequential form has no kernels"
    if x.dtype not in DTYPES[backend]:
        return f'it serves {DTYPES[backend]}'
    if backend == 'triton' and x.shape[1] > TRITON_CHANNELS:
        return f'it serves up to {TRITON_CHANNELS} channels'
    if backend == 'triton' and x.is_cuda and not _is_new_enough(x.device):
        return 'Triton does not support this GPU'
    return MISSING[backend]


@lru_cache(maxsize=None)
def _is_new_enough(device):
    return torch.cuda.get_device_properties(device).major >= 7
