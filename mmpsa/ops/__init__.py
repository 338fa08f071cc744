from .operator import (
    BACKENDS,
    Masks,
    backends,
    check_backend,
    choose_backend,
    masks,
    polarized_self_attention,
)

__all__ = [
    'BACKENDS',
    'Masks',
    'backends',
    'check_backend',
    'choose_backend',
    'masks',
    'polarized_self_attention',
]
