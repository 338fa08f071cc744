"""Records and draws what plugins do to the maps of a model."""

from .hook import PSAVisualizationHook
from .masks import draw_masks, find_plugins, record_masks

__all__ = [
    'PSAVisualizationHook',
    'draw_masks',
    'find_plugins',
    'record_masks',
]
