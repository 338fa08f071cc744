"""The backbones of mmpretrain with ``plugins=``."""

import mmpretrain.models  # noqa: F401
from mmpretrain.registry import MODELS

from .pluggable import pluggable

globals().update(pluggable(MODELS, __name__))
