"""The backbones of mmpose with ``plugins=``."""

import mmpose.models  # noqa: F401
from mmpose.registry import MODELS

from .pluggable import pluggable

globals().update(pluggable(MODELS, __name__))
