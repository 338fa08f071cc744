from .plugins import insert_plugins
from .polarized_self_attention import PolarizedSelfAttention

__all__ = ['PolarizedSelfAttention', 'insert_plugins']
