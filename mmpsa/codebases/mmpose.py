"""The backbones, necks and heads of mmpose with ``plugins=``."""

import mmpose.models  # noqa: F401
from mmpose.registry import MODELS

from .registration import register

globals().update(register(MODELS, __name__))
