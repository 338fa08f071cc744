"""Blocks of one's own, declared by the modules of their positions."""

import helpers  # noqa: F401, registers Probe
import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

import mmpsa


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            ConvModule(4, 6, 1), nn.Conv2d(6, 8, 1), nn.ReLU()
        )
        self.inner = nn.Sequential(nn.Identity(), nn.Conv2d(8, 3, 1))
        self.unknown = nn.Identity()

    def forward(self, x):
        return self.unknown(self.inner(self.body(x)))


def backbone(block):
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(block)

        def forward(self, x):
            return self.layer1(x)

    return Backbone()


def insert(block, position):
    root = backbone(block)
    (name,) = mmpsa.insert_plugins(
        root, [dict(cfg=dict(type='Probe', factor=2.0), position=position)]
    )
    assert name == 'layer1.0.probe'
    probe = root.get_submodule(name)
    x = torch.rand(2, 4, 5, 5)
    out = root(x)
    assert probe.calls == 1
    return root, probe, x, out


def test_dotted_names_sequentials_and_inputs():
    mmpsa.declare_block(
        Block,
        after_conv1='body.0',
        after_conv2='body.-1',
        after_conv3=mmpsa.input_of('inner'),
    )
    # a ReLU does not tell its width
    with pytest.raises(
        ValueError, match="'body.2' of Block, a ReLU, does not"
    ):
        insert(Block(), 'after_conv2')
    _, probe, x, out = insert(block := Block(), 'after_conv1')
    assert len(probe.weight) == 6
    y = block.body[1](2 * block.body[0].activate(block.body[0].conv(x)))
    torch.testing.assert_close(out, block.inner(y.relu()))
    mmpsa.declare_block(Block, after_conv2='body', after_conv3='inner')
    _, probe, x, out = insert(Block(), 'after_conv2')
    assert len(probe.weight) == 8
    root, probe, x, out = insert(block := Block(), 'after_conv3')
    assert len(probe.weight) == 3
    plain = Block()
    plain.load_state_dict(block.state_dict(), strict=False)
    torch.testing.assert_close(out, 2 * plain(x))


def test_a_later_declaration_of_the_class_holds_for_its_subclasses():
    class Child(Block):
        """Keeps its forward."""

    class Other(Block):
        def forward(self, x):
            return self.inner(self.body(x))

    mmpsa.declare_block(Block, after_conv1='body.0')
    insert(Child(), 'after_conv1')
    with pytest.raises(ValueError, match='no blocks whose positions are kn'):
        insert(Other(), 'after_conv1')
    mmpsa.declare_block(Child, after_conv2='body.1')
    insert(Child(), 'after_conv2')
    insert(Block(), 'after_conv1')


def test_a_name_that_no_block_has_is_named():
    mmpsa.declare_block(Block, after_conv1='bodi.0')
    with pytest.raises(
        ValueError, match="layer1.0 .Block. has no module 'bodi.0'"
    ):
        insert(Block(), 'after_conv1')


@pytest.mark.parametrize(
    'args, positions, error, message',
    [
        ((Block(),), {}, TypeError, 'a subclass of nn.Module, got Block'),
        ((int,), {}, TypeError, 'a subclass of nn.Module'),
        ((Block,), {}, ValueError, r'must be some of .* got \(\)'),
        ((Block,), dict(after_conv4='body'), ValueError, 'after_conv4'),
        ((Block,), dict(output='body'), ValueError, 'output'),
        ((Block,), dict(after_conv1=1), TypeError, 'got 1'),
        ((Block,), dict(after_conv1=''), TypeError, "got ''"),
        (
            (Block,),
            dict(after_conv1=mmpsa.input_of(None)),
            TypeError,
            "after_conv1 of Block must be a module's name",
        ),
    ],
)
def test_refused_declarations(args, positions, error, message):
    with pytest.raises(error, match=message):
        mmpsa.declare_block(*args, **positions)
