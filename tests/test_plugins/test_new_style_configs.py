"""Plugins in pure-Python configs, whose types are classes."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

BASE = """
from {codebase}.models.backbones import ResNet

model = dict(backbone=dict(type=ResNet, depth=18, frozen_stages=1))
"""
CONFIG = """
from mmengine.config import read_base

with read_base():
    from .base import *

from mmpsa import PSA
from mmpsa.codebases.{codebase} import ResNet

model.update(dict(backbone=dict(type=ResNet, plugins=[
    dict(cfg=dict(type=PSA, identity_init=True), position='output')])))
"""


def psa_of(cfg):
    backbone = MODELS.build(cfg.model.backbone)
    assert backbone.frozen_stages == 1
    return [n for n, _ in backbone.named_modules() if n.endswith('.psa')]


@pytest.mark.parametrize('codebase', ['mmpose', 'mmseg', 'mmdet'])
def test_plugins_in_a_class(codebase, tmp_path):
    (tmp_path / 'base.py').write_text(BASE.format(codebase=codebase))
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(codebase=codebase))
    names = psa_of(Config.fromfile(path))
    assert names and all(name.startswith('output.') for name in names)
    # dumped, classes are paths
    Config.fromfile(path).dump(tmp_path / 'dumped.py')
    assert (
        f'mmpsa.codebases.{codebase}.ResNet'
        in (tmp_path / 'dumped.py').read_text()
    )
    assert psa_of(Config.fromfile(tmp_path / 'dumped.py')) == names
