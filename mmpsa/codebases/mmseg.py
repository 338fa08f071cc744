"""The backbones, necks and heads of mmseg with ``plugins=``."""

import mmseg.models  # noqa: F401
from mmseg.registry import MODELS

from .registration import register

globals().update(register(MODELS, __name__))
