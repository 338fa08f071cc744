"""Upstream's backbones, necks and heads with ``plugins=``."""

from .registration import register_models

__all__ = ['register_models']
