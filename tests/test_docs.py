"""The table of backbones says what the registries and the code say."""

import runpy
from importlib import import_module
from pathlib import Path

import pytest

from dev.small_backbones import BACKBONES
from mmpsa.codebases.registration import Pluggable

DOCS = Path(__file__).parents[1] / 'docs'


@pytest.mark.parametrize('codebase', BACKBONES)
class TestTableOfBackbones:
    def test_has_every_registered_backbone(self, codebase):
        pytest.importorskip(codebase)
        registered = {
            name
            for name, cls in vars(
                import_module(f'mmpsa.codebases.{codebase}')
            ).items()
            if isinstance(cls, type)
            and issubclass(cls, Pluggable)
            and cls.plugin_positions
        }
        listed = {cfg['type'] for cfg in BACKBONES[codebase].values()}
        assert listed == registered

    @pytest.mark.slow
    def test_is_up_to_date(self, codebase):
        """After a change of it: python docs/backbones.py"""
        pytest.importorskip(codebase)
        section = runpy.run_path(str(DOCS / 'backbones.py'))['section']
        assert section(codebase) in (DOCS / 'backbones.md').read_text()
