"""PSA as a function of tensors, by several backends."""

from .availability import BACKENDS, backends
from .choice import check_backend, choose_backend
from .function import Masks, masks, polarized_self_attention
from .spec import LAYOUTS, Spec, Weights

__all__ = [
    'BACKENDS',
    'LAYOUTS',
    'Masks',
    'Spec',
    'Weights',
    'backends',
    'check_backend',
    'choose_backend',
    'masks',
    'polarized_self_attention',
]
