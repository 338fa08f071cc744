from .backends import (
    BACKENDS,
    Masks,
    check_backend,
    choose_backend,
    masks,
    polarized_self_attention,
)

__all__ = [
    'BACKENDS',
    'Masks',
    'check_backend',
    'choose_backend',
    'masks',
    'polarized_self_attention',
]
