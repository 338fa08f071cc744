"""What acts through a layer of the block acts: the block then calls it."""

import copy
import logging
import os
import subprocess
import sys

import pytest
import torch
from helpers import KINDS, make_block
from mmengine.logging import MMLogger
from torch import nn
from torch.nn.utils import parametrize, prune

from mmpsa import PSA

CHANNELS = 16


def images(batch=2, size=8, channels=CHANNELS):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, channels, size, size, generator=generator)


def layers_of(block):
    """The block's convolutions and norms, by name."""
    return {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, (nn.Conv2d, nn.LayerNorm))
    }


CASES = [
    (kind, name)
    for kind in KINDS
    for name in layers_of(make_block(*kind, CHANNELS))
]


class Scaled(nn.Module):
    """As an adapter: holds a layer and changes what it returns."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.factor * self.layer(x)


def replace(block, name, module):
    path, _, last = name.rpartition('.')
    setattr(block.get_submodule(path), last, module)


@pytest.mark.parametrize('kind', KINDS)
def test_plain_layers_are_read_and_not_called(kind):
    block = make_block(*kind, CHANNELS)
    called = []
    for layer in layers_of(block).values():
        layer.__class__ = type(
            'Counted',
            (type(layer),),
            dict(forward=lambda *_: called.append(1)),
        )
        layer.__class__ = layer.__class__.__bases__[0]
    assert block.served_by(images()) != 'layers'
    block(images())
    assert not called


@pytest.mark.parametrize('kind, name', CASES)
def test_a_hook_sees_the_maps_of_the_equations(kind, name):
    block = make_block(*kind, CHANNELS)
    x = images()
    expected = block(x)
    seen = []
    handle = layers_of(block)[name].register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    assert block.served_by(x) == 'layers'
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 1
    if name in ('sp_wv', 'ch_wv', 'conv_v_left', 'conv_v_right'):
        assert seen[0].shape == (2, CHANNELS // 2, 8, 8)  # un-collapsed
    handle.remove()
    assert block.served_by(x) != 'layers'


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    'register',
    [
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
    ],
    ids=lambda f: f.__name__,
)
def test_every_kind_of_hook_is_called(kind, register):
    block = make_block(*kind, CHANNELS)
    calls = []
    for layer in layers_of(block).values():
        register(layer, lambda *_: calls.append(1))
    block(images().requires_grad_()).sum().backward()
    assert len(calls) == len(layers_of(block))


@pytest.mark.parametrize(
    'register',
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
    ],
    ids=lambda f: f.__name__,
)
def test_global_hooks_are_called(register):
    block, calls = make_block('paper', 'parallel', CHANNELS), []
    handle = register(lambda module, *_: calls.append(module))
    try:
        block(images().requires_grad_()).sum().backward()
    finally:
        handle.remove()
    assert {*layers_of(block).values()} <= {*calls}


@pytest.mark.parametrize('kind, name', CASES)
def test_a_replaced_layer_is_used(kind, name):
    block = make_block(*kind, CHANNELS)
    x = images()
    other = copy.deepcopy(block)
    for parameter in layers_of(other)[name].parameters():
        parameter.data.mul_(2)
    adapter = Scaled(layers_of(block)[name])
    replace(block, name, adapter)
    assert block.served_by(x) == 'layers'
    torch.testing.assert_close(block(x), other(x), rtol=1e-4, atol=1e-5)
    block(x).sum().backward()
    assert adapter.factor.grad is not None
    channel, spatial = block.masks(x)
    for ours, theirs in zip((channel, spatial), other.masks(x)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class LowRank(nn.Module):
    """As LoRA by peft: a frozen convolution, plus two narrow ones."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A = nn.Conv2d(layer.in_channels, 2, 1, bias=False)
        self.lora_B = nn.Conv2d(2, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    # Whoever reads it instead of calling the layer misses the adapter.
    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

    def merged(self):
        added = self.lora_B.weight.flatten(1) @ self.lora_A.weight.flatten(1)
        self.base_layer.weight.data += added.detach()[:, :, None, None]
        return self.base_layer


@pytest.mark.parametrize('kind', KINDS)
def test_low_rank_adapters(kind):
    """They start as nothing, learn, and merge into the weights."""
    block, x = make_block(*kind, CHANNELS), images()
    expected = block(x)
    adapters = {
        name: LowRank(layer)
        for name, layer in layers_of(block).items()
        if isinstance(layer, nn.Conv2d)
    }
    for name, adapter in adapters.items():
        replace(block, name, adapter)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    learnt = [
        parameter
        for adapter in adapters.values()
        for parameter in (adapter.lora_A.weight, adapter.lora_B.weight)
    ]
    optimizer = torch.optim.SGD(learnt, 0.1)
    for _ in range(5):  # the first gives no gradient to lora_A
        optimizer.zero_grad()
        block(x).square().sum().div(50).backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in learnt)
    trained = block(x)
    assert (trained - expected).abs().max() > 5e-3
    for name, adapter in adapters.items():
        replace(block, name, adapter.merged())
    assert block.served_by(x) != 'layers'
    torch.testing.assert_close(block(x), trained, rtol=1e-4, atol=1e-5)


def test_a_forward_of_the_instance_is_used():
    """As accelerate's offloading sets one."""
    block = make_block('paper', 'parallel', CHANNELS)
    own, calls = block.sp_wv.forward, []
    block.sp_wv.forward = lambda x: calls.append(1) or own(x)
    block(images())
    assert calls == [1]


@pytest.mark.parametrize('kind, name', CASES)
def test_pruned_layers_train(kind, name):
    """Two steps; and what the mask leaves counts in inference."""
    block = make_block(*kind, CHANNELS)
    layer = layers_of(block)[name]
    prune.l1_unstructured(layer, 'weight', 0.5)
    optimizer = torch.optim.SGD(block.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        block(images()).square().sum().backward()
        optimizer.step()
    kept = layer.weight_mask.bool()
    assert not layer.weight_orig.grad[~kept].any()
    block.eval()
    x = images()
    before = block(x)
    with torch.no_grad():
        layer.weight_orig.mul_(30)
    if 'wq' not in name:  # a softmax may be saturated
        assert not torch.equal(block(x), before)
    prune.remove(layer, 'weight')
    assert block.served_by(x) != 'layers'


def test_parametrised_layers_count():
    block = make_block('paper', 'sequential', CHANNELS)
    x = images()
    before = block(x)
    parametrize.register_parametrization(block.sp_wv, 'weight', nn.Tanh())
    assert block.served_by(x) == 'layers'
    assert not torch.allclose(block(x), before)
    block(x).sum().backward()
    assert block.sp_wv.parametrizations.weight.original.grad.any()


def test_layers_of_another_width_count():
    """As structured pruning leaves them."""
    block, x = make_block('paper', 'parallel', CHANNELS), images()
    pruned = copy.deepcopy(block)
    for name in ('sp_wv', 'sp_wq'):
        wide, narrow = getattr(block, name), nn.Conv2d(CHANNELS, 5, 1)
        narrow.weight.data = wide.weight.data[:5]
        narrow.bias.data = wide.bias.data[:5]
        replace(pruned, name, narrow)
    # the same, said to the operator: the softmax gives the others nothing
    block.sp_wq.bias.data[5:] = -1e4
    block.ch_wz.bias.data.zero_()
    pruned.ch_wz.bias = None
    assert pruned.served_by(x) == 'layers' != block.served_by(x)
    torch.testing.assert_close(pruned(x), block(x), rtol=1e-4, atol=1e-5)


def test_the_eps_of_the_norm_counts():
    for kind in (('paper', 'channel'), ('official', 'sequential')):
        block = make_block(*kind, CHANNELS)
        x = images()
        before = block(x)
        norm = block.ln if kind[0] == 'paper' else block.conv_up[1]
        norm.eps = 1.0
        assert not torch.allclose(block(x), before)


def test_quantisation_aware_training_reaches_every_layer():
    quantization = pytest.importorskip('torch.ao.quantization')
    model = nn.Sequential(make_block('paper', 'parallel', CHANNELS)).train()
    model.qconfig = quantization.get_default_qat_qconfig('fbgemm')
    quantization.prepare_qat(model, inplace=True)
    seen = set()
    for name, module in model.named_modules():
        if hasattr(module, 'weight_fake_quant'):
            module.weight_fake_quant.register_forward_hook(
                lambda *_, name=name: seen.add(name)
            )
    model(images()).sum().backward()
    assert len(seen) == 5  # there is no fake quantisation of LayerNorm


def test_a_quantised_input_is_refused_with_the_remedy():
    block = make_block('paper', 'parallel', CHANNELS)
    x = torch.quantize_per_tensor(images(), 0.1, 0, torch.qint8)
    for given in (block, hooked(copy.deepcopy(block))):
        with pytest.raises(ValueError, match=r'psa\.qconfig = None'):
            given(x)


def test_a_part_that_is_left_out_of_quantisation_runs():
    quantization = pytest.importorskip('torch.ao.quantization')

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant = quantization.QuantStub()
            self.conv = nn.Conv2d(3, CHANNELS, 1)
            self.dequant = quantization.DeQuantStub()
            self.psa = make_block('paper', 'parallel', CHANNELS)
            self.psa.qconfig = None

        def forward(self, x):
            return self.psa(self.dequant(self.conv(self.quant(x))))

    model = Model().eval()
    model.qconfig = quantization.get_default_qconfig('fbgemm')
    model.psa.qconfig = None
    prepared = quantization.prepare(model)
    prepared(images(channels=3))
    converted = quantization.convert(prepared)
    assert converted(images(channels=3)).shape == (2, CHANNELS, 8, 8)


def hooked(block):
    next(iter(layers_of(block).values())).register_forward_hook(
        lambda *_: None
    )
    return block


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kind', KINDS)
def test_half_precision(kind, dtype):
    """A layer in the dtype of its weights, the rest in float32."""
    x = images()
    block = make_block(*kind, CHANNELS)
    for parameter in block.parameters():
        parameter.data.mul_(0.3)
    expected = block(x)
    seen = []
    mixed = hooked(copy.deepcopy(block))
    for layer in layers_of(mixed).values():
        layer.register_forward_hook(
            lambda module, args, out: seen.append(args[0].dtype)
        )
    out = mixed(x.to(dtype))
    assert out.dtype == dtype and {*seen} == {torch.float32}
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    seen.clear()
    with torch.autocast('cpu', torch.bfloat16):
        assert mixed(x).dtype == torch.float32
    assert {*seen} == {torch.float32}
    seen.clear()
    out = mixed.to(dtype)(x.to(dtype))
    assert out.dtype == dtype and {*seen} == {dtype}
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_the_log_says_layers():
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logger = MMLogger.get_current_instance()
    handler, level = Keep(logging.DEBUG), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        from mmpsa.ops import choice

        choice._LOGGED.clear()
        choice._log.cache_clear()
        hooked(make_block('paper', 'channel', CHANNELS))(images())
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert lines == ['PSA, paper channel, torch.float32, cpu: layers backend']


@pytest.mark.parametrize('call', ['forward', 'served_by', 'masks'])
@pytest.mark.parametrize(
    'x',
    [
        torch.zeros(CHANNELS, 8, 8),
        torch.zeros(2, CHANNELS, 8, 8).int(),
        torch.zeros(2, CHANNELS + 1, 8, 8),
    ],
)
def test_a_wrong_input_is_refused_then(call, x):
    block = hooked(make_block('paper', 'parallel', CHANNELS))
    with pytest.raises(ValueError, match=f'x must be N×{CHANNELS}×H×W'):
        getattr(block, call)(x)


def test_there_are_no_weights_for_the_operator_then():
    block = make_block('paper', 'parallel', CHANNELS)
    assert block.weights.ch_wq is block.ch_wq.weight
    assert hooked(block).weights is None


def test_scripting_says_to_trace():
    for module in (PSA(8), nn.Sequential(PSA(8))):
        with pytest.raises(RuntimeError, match=r'use torch\.jit\.trace'):
            torch.jit.script(module)


@pytest.mark.parametrize('kind', KINDS)
def test_traced_compiled_and_exported_with_hooks(kind):
    block = hooked(make_block(*kind, CHANNELS).eval())
    x = images()
    expected = block(x)
    for forward in (
        torch.jit.trace(block, x),
        torch.compile(block, backend='eager'),
        torch.export.export(block, (x,)).module(),
    ):
        torch.testing.assert_close(forward(x), expected)


@pytest.mark.parametrize('kind', KINDS)
def test_flops_of_the_operator(kind):
    """The collapsed form, twice its multiply-adds; as much again, twice, in
    the backward.
    """
    counter = pytest.importorskip('torch.utils.flop_counter')
    from mmpsa.ops import polarized_self_attention

    block = make_block(*kind, CHANNELS)
    x, weights = images().requires_grad_(), block.weights
    with counter.FlopCounterMode(display=False) as forward:
        y = polarized_self_attention(x, weights, block.spec)
    n, c, p, m = 2, CHANNELS, 64, CHANNELS // 2
    spatial, channel = block.spec.has_spatial, block.spec.has_channel
    expected = n * (
        c * p * (3 * channel + spatial) + 2 * m * c * (channel + spatial)
    )
    if not block.spec.has_value_map:  # plain torch computes that form
        assert forward.get_total_flops() == 2 * expected
        with counter.FlopCounterMode(display=False) as backward:
            y.sum().backward()
        assert backward.get_total_flops() == 4 * expected
    with counter.FlopCounterMode(display=False) as whole:
        block(x)  # the counter hooks all modules
    assert whole.get_total_flops() > 2 * expected


@pytest.mark.parametrize('kind, name', CASES)
def test_a_bias_that_is_added_counts(kind, name):
    block = make_block(*kind, CHANNELS)
    layer, x = layers_of(block)[name], images()
    if layer.bias is not None:
        pytest.skip('it has one')
    expected = block(x)
    layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    assert block.served_by(x) == 'layers'
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_added_counts():
    block, x = make_block('official', 'sequential', CHANNELS), images()
    expected = block(x)
    block.conv_up.append(nn.Tanh())
    assert block.served_by(x) == 'layers'
    assert not torch.allclose(block(x), expected, rtol=1e-2)


@pytest.mark.slow
def test_flops_of_a_pickled_block(tmp_path):
    """The first block of a process may come out of a file."""
    pytest.importorskip('torch.utils.flop_counter')
    torch.save(PSA(8), tmp_path / 'block.pth')
    code = (
        'import torch\n'
        'block = torch.load("block.pth", weights_only=False)\n'
        'from torch.utils.flop_counter import FlopCounterMode\n'
        'with FlopCounterMode(display=False) as counter:\n'
        '    block(torch.rand(1, 8, 4, 4))\n'
        'print(counter.get_total_flops())\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
    )
    assert int(done.stdout.split()[-1]) > 0, done.stderr
