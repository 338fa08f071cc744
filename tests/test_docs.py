"""The table of backbones says what the registries and the code say."""

import runpy
from importlib import import_module
from pathlib import Path

import pytest
from small_backbones import BACKBONES

from mmpsa.models.backbones.pluggable import PluggableBackbone

DOCS = Path(__file__).parents[1] / 'docs'


@pytest.mark.parametrize('codebase', BACKBONES)
def test_every_registered_backbone_has_a_row(codebase):
    registered = {
        name
        for name, cls in vars(
            import_module(f'mmpsa.models.backbones.{codebase}')
        ).items()
        if isinstance(cls, type) and issubclass(cls, PluggableBackbone)
    }
    listed = {cfg['type'] for cfg in BACKBONES[codebase].values()}
    assert listed == registered and registered


def test_table_of_backbones_is_up_to_date():
    """After a change of it: python docs/backbones.py"""
    page = runpy.run_path(str(DOCS / 'backbones.py'))['page']()
    assert (DOCS / 'backbones.md').read_text() == page
