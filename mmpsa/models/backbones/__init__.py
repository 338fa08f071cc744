"""Backbones of mmpose and mmseg that take ``plugins=``."""

from .pluggable import register_backbones

__all__ = ['register_backbones']
