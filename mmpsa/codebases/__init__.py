"""Upstream's backbones with ``plugins=``."""

from .pluggable import register_backbones

__all__ = ['register_backbones']
