"""The reference against numpy, position by position."""

import numpy as np
import pytest
import torch

from mmpsa import PolarizedSelfAttention
from mmpsa.ops import LAYOUTS, reference

EPS = 1e-5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def layer_norm(x, weight, bias):
    return (x - x.mean()) / np.sqrt(x.var() + EPS) * weight + bias


class Weights:
    """1×1 convolutions of a block as functions of one position's vector."""

    def __init__(self, block):
        self.state = {
            k: v.detach().numpy().reshape(len(v) if v.dim() else 1, -1)
            for k, v in block.state_dict().items()
        }

    def __call__(self, name, vector):
        out = self.state[f'{name}.weight'] @ vector
        if f'{name}.bias' in self.state:
            out = out + self.state[f'{name}.bias'][:, 0]
        return out

    def norm(self, name, vector):
        return layer_norm(
            vector,
            self.state[f'{name}.weight'][:, 0],
            self.state[f'{name}.bias'][:, 0],
        )


def channel_mask(w, pixels, variant, layout):
    paper = variant == 'paper'
    wv, wq = ('ch_wv', 'ch_wq') if paper else ('conv_v_right', 'conv_q_right')
    attention = softmax(np.array([w(wq, x)[0] for x in pixels]))
    context = sum(a * w(wv, x) for a, x in zip(attention, pixels))
    if paper:
        return sigmoid(w.norm('ln', w('ch_wz', context)))
    if layout == 'parallel':
        return sigmoid(w('conv_up', context))
    squeezed = w.norm('conv_up.1', w('conv_up.0', context))
    return sigmoid(w('conv_up.3', np.maximum(squeezed, 0)))


def spatial_mask(w, pixels, variant, layout):
    paper = variant == 'paper'
    wv, wq = ('sp_wv', 'sp_wq') if paper else ('conv_v_left', 'conv_q_left')
    query = np.mean([w(wq, x) for x in pixels], axis=0)
    values = np.array([w(wv, x) for x in pixels])  # P×M
    if paper:
        return sigmoid(values @ softmax(query))
    if layout == 'parallel':
        return sigmoid(softmax(values @ query))
    columns = np.stack([softmax(column) for column in values.T], 1)
    return sigmoid(columns @ query)


def expected(block, image):
    """One image as P vectors of C channels."""
    w, layout, variant = Weights(block), block.layout, block.variant
    pixels = image.reshape(len(image), -1).T
    out = np.zeros_like(pixels)
    scale = float(w.state.get('mask_scale', 1))
    if layout != 'spatial':
        out = pixels * scale * channel_mask(w, pixels, variant, layout)
    if layout == 'sequential':
        return out * scale * spatial_mask(w, out, variant, layout)[:, None]
    if layout != 'channel':
        mask = scale * spatial_mask(w, pixels, variant, layout)
        out = out + pixels * mask[:, None]
    return out


@pytest.mark.parametrize(
    'variant, layout',
    [(v, layout) for v, layouts in LAYOUTS.items() for layout in layouts],
)
def test_reference(variant, layout):
    torch.manual_seed(0)
    block = PolarizedSelfAttention(10, layout, variant).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    if block.mask_scale is not None:
        block.mask_scale.fill_(1.5)
    images = torch.randn(3, 10, 4, 3, dtype=torch.double)
    out = reference.polarized_self_attention(images, block.weights, block.spec)
    for image, ours in zip(images.numpy(), out.detach().numpy()):
        pixels = ours.reshape(10, -1).T
        np.testing.assert_allclose(pixels, expected(block, image), rtol=1e-10)
