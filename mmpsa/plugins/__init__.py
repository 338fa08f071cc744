from .insertion import insert_plugins
from .pluggable import pluggable

__all__ = ['insert_plugins', 'pluggable']
