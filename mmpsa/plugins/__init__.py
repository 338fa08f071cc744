"""Puts plugins into modules that have been built."""

from .blocks import declare_block, input_of
from .insertion import insert_plugins
from .pluggable import pluggable

__all__ = ['declare_block', 'input_of', 'insert_plugins', 'pluggable']
