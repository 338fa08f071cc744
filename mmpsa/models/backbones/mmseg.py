"""The residual backbones of mmsegmentation with ``plugins=``."""

from mmseg.models import backbones
from mmseg.registry import MODELS

from .pluggable import pluggable

NAMES = ('HRNet', 'ResNet', 'ResNetV1c', 'ResNetV1d', 'ResNeXt')
globals().update(pluggable(backbones, NAMES, MODELS, __name__))
