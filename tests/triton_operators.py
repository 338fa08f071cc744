"""Triton's kernels without a safety net, and without a GPU.

No kernel may fail unseen. Where there is no GPU, Triton interprets its
kernels, slowly, for inputs on the CPU.
"""

import torch

from mmpsa.ops import availability, function, registration
from mmpsa.ops.safety_net import guard

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def define(namespace, guarded):
    """The operators with Triton's kernels on ``DEVICE``."""
    library, ops = registration.define(namespace, in_cpp=False)
    for name, operator in registration.OPERATORS.items():
        kernel = registration.triton_kernel(name)
        if guarded:
            kernel = guard(name, kernel, operator.fallback)
        dtypes = availability.DTYPES['triton']
        kernel = registration.checked(name, kernel, dtypes)
        library.impl(name, kernel, DEVICE.upper())
    return library, ops


if availability.MISSING['triton'] is None:
    _BARE, BARE = define('mmpsa_bare', guarded=False)
    _GUARDED, GUARDED = define('mmpsa_guarded', guarded=True)


def install():
    """Let blocks with ``backend='triton'`` run them."""
    if availability.MISSING['triton'] is None:
        availability.DEVICES['triton'] = DEVICE
        function.NAMESPACES['triton'] = BARE
