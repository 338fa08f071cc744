"""The backbones of mmdet with ``plugins=``."""

import mmdet.models  # noqa: F401
from mmdet.registry import MODELS

from .pluggable import pluggable

globals().update(pluggable(MODELS, __name__))
