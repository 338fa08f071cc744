"""Records and draws the masks of PSA."""

from .hook import PSAVisualizationHook
from .masks import draw_masks, find_psa, record_masks

__all__ = ['PSAVisualizationHook', 'draw_masks', 'find_psa', 'record_masks']
