"""timm's networks through the codebases' TIMMBackbone."""

import copy
import pickle

import pytest
import torch
from helpers import Probe, build, images, randomise

from mmpsa import insert_plugins

pytest.importorskip('timm')

CODEBASES = ['mmseg', 'mmpretrain']


def backbone_of(codebase, name, **kwargs):
    pytest.importorskip(codebase)
    backbone = build(codebase, 'TIMMBackbone', model_name=name, **kwargs)
    backbone.eval()  # returns nothing in mmpretrain
    return backbone


@pytest.mark.parametrize('codebase', CODEBASES)
@pytest.mark.parametrize(
    'name, pattern',
    [
        ('tf_efficientnet_lite0', 'timm_model.blocks.*.*'),
        ('resnet18', 'timm_model.layer*.*'),
        ('convnext_atto', 'timm_model.stages_*.blocks.*'),
    ],
)
def test_blocks_by_name(codebase, name, pattern):
    """Each block's map doubled by its plugin, or by a hook of its own."""
    plain = randomise(backbone_of(codebase, name))
    backbone = copy.deepcopy(plain)
    entry = dict(cfg=dict(type='Probe', factor=2.0), modules=pattern)
    names = insert_plugins(backbone, [entry])
    assert len(names) >= 8
    blocks = [name.rpartition('.')[0] for name in names]
    assert names == [f'{block}.probe' for block in blocks]
    for block in blocks:
        plain.get_submodule(block).register_forward_hook(
            lambda module, args, output: 2 * output
        )
    x = images()
    expected = plain(x)
    assert len(expected) >= 4
    for again in (backbone, pickle.loads(pickle.dumps(backbone))):
        out = again(x)
        for a, b in zip(out, expected):
            torch.testing.assert_close(a, b)
        assert all(m.calls for m in again.modules() if type(m) is Probe)


@pytest.mark.parametrize('codebase', CODEBASES)
def test_outputs_and_the_constructor(codebase):
    entry = dict(cfg=dict(type='PSA', identity_init=True), position='output')
    plain = randomise(backbone_of(codebase, 'resnet18'))
    backbone = backbone_of(codebase, 'resnet18', plugins=[entry])
    backbone.load_state_dict(plain.state_dict(), strict=False)
    x = images()
    out = backbone(x)
    assert [*backbone.output._modules] == [str(i) for i in range(len(out))]
    for a, b in zip(out, plain(x)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('codebase', CODEBASES)
@pytest.mark.parametrize(
    'place', [dict(position='output'), dict(modules='timm_model.layers_*')]
)
def test_maps_with_channels_last_are_refused(codebase, place):
    backbone = backbone_of(codebase, 'swin_tiny_patch4_window7_224')
    with pytest.raises(
        ValueError,
        match=r'timm_model of this TIMMBackbone, .* N×H×W×C maps; plugins ta',
    ):
        insert_plugins(backbone, [dict(cfg=dict(type='Probe'), **place)])
