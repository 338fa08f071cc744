"""The backbones of mmseg with ``plugins=``."""

import mmseg.models  # noqa: F401
from mmseg.registry import MODELS

from .pluggable import pluggable

globals().update(pluggable(MODELS, __name__))
