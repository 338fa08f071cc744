"""The residual backbones of mmpose with ``plugins=``."""

from mmpose.models import backbones
from mmpose.registry import MODELS

from .pluggable import pluggable

NAMES = ('HRNet', 'ResNet', 'ResNetV1d', 'ResNeXt', 'SEResNet', 'SCNet')
globals().update(pluggable(backbones, NAMES, MODELS, __name__))
