"""The backbones, necks and heads of mmdet with ``plugins=``."""

import mmdet.models  # noqa: F401
from mmdet.registry import MODELS

from .registration import register

globals().update(register(MODELS, __name__))
