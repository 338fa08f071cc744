"""timm's attention layers as plugins, by name."""

import inspect
import re
import sys

import pytest
import torch
from helpers import BACKBONES, images
from mmengine.registry import MODELS
from torch import nn

from mmpsa.timm_attention import NOT_SERVED, PREFIX, SERVED

create_attn = pytest.importorskip('timm.layers.create_attn')


def buildable(name):
    try:
        create_attn.create_attn(name, 8)
    except TypeError:  # a mistake in timm
        return False
    return True


# timm 1.0.31 cannot build its GatherExcite.
BUILT = [name for name in SERVED if name != 'ge' or buildable(name)]


def entry(name, **kwargs):
    return dict(cfg=dict(type=PREFIX + name, **kwargs), position='after_conv1')


def resnet(*plugins, **kwargs):
    from mmpose.registry import MODELS as registry

    plugins = [dict(plugin, **kwargs) for plugin in plugins]
    cfg = dict(BACKBONES['mmpose']['ResNet18'], base_channels=16)
    return registry.build(dict(cfg, plugins=plugins))


def test_names_are_those_of_the_installed_timm():
    source = inspect.getsource(create_attn.get_attn)
    known = set(re.findall(r"attn_type == '(\w+)'", source))
    assert known == {*SERVED, *NOT_SERVED}
    assert not {*SERVED} & {*NOT_SERVED}


@pytest.mark.parametrize('identity_init', [False, True])
@pytest.mark.parametrize('name', BUILT)
def test_trained_copied_and_exported(name, identity_init):
    pytest.importorskip('mmpose')
    torch.manual_seed(0)
    model = resnet(entry(name), identity_init=identity_init)
    plugin = model.layer1[0].get_submodule(name)
    theirs = create_attn.create_attn(name, 16)
    assert isinstance(plugin, type(theirs))
    more = {'identity_gamma'} if identity_init else set()
    assert {*plugin.state_dict()} == {*theirs.state_dict()} | more

    before = {k: p.detach().clone() for k, p in plugin.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(3):  # γ and the last layers of some start at 0
        optimizer.zero_grad()
        sum(y.square().mean() for y in model(images())).backward()
        optimizer.step()
    # a bias before a softmax or a norm does nothing
    assert all(
        not torch.equal(p, before[k])
        for k, p in plugin.named_parameters()
        if p.dim() > 1 or k == 'identity_gamma'
    )

    x = torch.randn(2, 16, 9, 7)
    plugin.eval()
    assert not torch.allclose(plugin(x), x)
    exported = torch.export.export(plugin, (x,)).module()
    torch.testing.assert_close(exported(x), plugin(x))


def test_two_kinds_in_one_place_need_no_postfix():
    pytest.importorskip('mmpose')
    model = resnet(entry('se'), entry('eca', kernel_size=5))
    block = model.layer1[0]
    assert [n for n, _ in block.named_children()][-2:] == ['se', 'eca']


@pytest.mark.parametrize(
    'plugin, message',
    [
        (entry('cbm'), 'names like it: timm_se, timm_ese, .*timm_strip'),
        (entry('sk'), "timm's 'sk' is no plugin: it replaces a convolution"),
        (entry('nl'), "take mmcv's 'NonLocal2d'"),
        (
            entry('cbam', ratio=4),
            'timm_cbam takes rd_ratio, rd_channels, .*, got ratio',
        ),
        # timm's class swallows this one
        (
            entry('ese', rd_ratio=4),
            'timm_ese takes add_maxpool, gate_layer, got rd_ratio',
        ),
    ],
)
def test_refused(plugin, message):
    pytest.importorskip('mmpose')
    with pytest.raises(ValueError, match=message):
        resnet(plugin)


@pytest.mark.parametrize('name', NOT_SERVED)
def test_every_name_that_is_not_served_says_why(name):
    with pytest.raises(ValueError, match=NOT_SERVED[name]):
        MODELS.build(dict(type=PREFIX + name, in_channels=8))


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm.layers.create_attn', None)
    with pytest.raises(ImportError, match='timm_se is a layer of timm.*pip'):
        MODELS.build(dict(type='timm_se', in_channels=8))


def test_timm_is_imported_when_one_is_built():
    """Importing mmpsa does not import timm, which takes seconds."""
    import subprocess

    code = "import sys, mmpsa; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_another_plugin_named_like_ours_is_a_module():
    assert all(
        issubclass(MODELS.get(PREFIX + name), nn.Module) for name in SERVED
    )
