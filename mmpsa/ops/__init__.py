from .operator import (
    BACKENDS,
    Masks,
    backends,
    check_backend,
    choose_backend,
    masks,
    polarized_self_attention,
)
from .spec import Spec, Weights

__all__ = [
    'BACKENDS',
    'Masks',
    'Spec',
    'Weights',
    'backends',
    'check_backend',
    'choose_backend',
    'masks',
    'polarized_self_attention',
]
