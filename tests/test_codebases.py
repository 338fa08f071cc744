"""Classes of mmpsa work as upstream's where upstream asks for its own."""

import ast
import copy
import inspect
import pickle
import re
import textwrap
from collections import OrderedDict
from importlib import import_module

import pytest
from helpers import build
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import load_state_dict

from mmpsa.compatibility import installed_codebases

# While these run, a module is of upstream's class.
AS_UPSTREAMS = {'__init__', '_load_from_state_dict'}


def asks_for_its_class(function):
    """Whether it compares ``self.__class__`` or ``type(self)``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    sides = {
        ast.dump(side)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
    }
    asked = ('self.__class__', 'type(self)')
    return bool(sides & {ast.dump(ast.parse(a).body[0].value) for a in asked})


def test_where_upstream_asks_for_its_class():
    found = set()
    for codebase in installed_codebases():
        ours = import_module(f'mmpsa.codebases.{codebase}')
        for cls in vars(ours).values():
            for base in getattr(cls, '__mro__', ()):
                if base.__module__.startswith(f'{codebase}.'):
                    found.update(
                        (base.__name__, name)
                        for name, method in vars(base).items()
                        if inspect.isfunction(method)
                        and asks_for_its_class(method)
                    )
    assert found
    assert {name for _, name in found} <= AS_UPSTREAMS


def test_the_head_of_detr_keeps_its_class_weights():
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS

    loss = dict(type='CrossEntropyLoss', class_weight=1.0, bg_cls_weight=0.25)
    cfg = dict(type='DETRHead', num_classes=2, embed_dims=8, loss_cls=loss)
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = MODELS.build(cfg)
    for each in (head, copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert type(each).__module__ == 'mmpsa.codebases.mmdet'
        assert each.loss_cls.class_weight.tolist() == [1.0, 1.0, 0.25]
        assert each.bg_cls_weight == 0.25


@pytest.mark.parametrize(
    'plugins', [None, [dict(cfg=dict(type='Probe'), position='output')]]
)
def test_weights_of_an_old_swin_load(plugins):
    pytest.importorskip('mmpretrain')
    swin = build('mmpretrain', 'SwinTransformer', plugins=plugins)
    old = OrderedDict(
        (re.sub('^norm3', 'norm', key), value)
        for key, value in swin.state_dict().items()
    )
    assert 'norm.weight' in old
    load_state_dict(swin, old, strict=True)
    assert type(swin).__module__ == 'mmpsa.codebases.mmpretrain'
