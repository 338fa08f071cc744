"""The backbones, necks and heads of mmpretrain with ``plugins=``."""

import mmpretrain.models  # noqa: F401
from mmpretrain.registry import MODELS

from .registration import register

globals().update(register(MODELS, __name__))
