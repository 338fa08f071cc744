from .collapsed import Masks, gate, official_masks, paper_masks

__all__ = ['Masks', 'gate', 'official_masks', 'paper_masks']
