"""Whole models with PSA, exported by each of torch's ways."""

import copy
import io
from importlib import import_module

import onnxruntime
import onnxscript  # noqa: F401  (mim imports pip, which then breaks typing for it)
import pytest
import torch
from helpers import BACKBONES, KINDS, images, make_block, randomise
from mmseg.models.utils import Upsample
from torch import nn

MODELS = {
    'mmpose': dict(
        type='TopdownPoseEstimator',
        head=dict(
            type='HeatmapHead',
            in_channels=4,
            out_channels=3,
            deconv_out_channels=None,
            loss=dict(type='KeypointMSELoss'),
        ),
    ),
    'mmseg': dict(
        type='EncoderDecoder',
        decode_head=dict(
            type='FCNHead',
            in_channels=[4, 8],
            in_index=[0, 1],
            input_transform='resize_concat',
            channels=8,
            num_classes=3,
        ),
    ),
}
PLUGINS = [dict(cfg=dict(type='PSA'), position='after_conv1')]


class Tensors(nn.Module):
    """A model without the data samples, which exporters do not take."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x, None, mode='tensor')


@pytest.fixture(scope='module', params=MODELS)
def model(request):
    codebase = request.param
    backbone = copy.deepcopy(BACKBONES[codebase]['HRNet'])
    # Two branches all along: exporters are slow.
    extra = backbone['extra']
    extra.update(stage3=extra['stage2'], stage4=extra['stage2'])
    backbone['plugins'] = PLUGINS
    cfg = dict(copy.deepcopy(MODELS[codebase]), backbone=backbone)
    registry = import_module(f'{codebase}.registry').MODELS
    model = registry.build(dict(cfg, _scope_=codebase))
    return Tensors(randomise(model)).eval().requires_grad_(False)


def scale_upsampling(model):
    """mmseg's HRNet computes sizes as Python numbers, which fixes them."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, Upsample):
                scaled = nn.Upsample(
                    scale_factor=child.scale_factor,
                    mode=child.mode,
                    align_corners=child.align_corners,
                )
                setattr(module, name, scaled)
    return model


@pytest.fixture(scope='module')
def dynamic(model):
    """Exported for any batch, and any height and width that HRNet takes."""
    sides = {
        i: 32 * torch.export.Dim(name, max=64)
        for i, name in ((2, 'h'), (3, 'w'))
    }
    shapes = ({0: torch.export.Dim('n', max=64), **sides},)
    scaled = scale_upsampling(copy.deepcopy(model))
    return torch.export.export(scaled, (images(),), dynamic_shapes=shapes)


OTHER = torch.rand(3, 3, 96, 64, generator=torch.Generator().manual_seed(2))


def same(ours, expected, tolerance=1e-5):
    torch.testing.assert_close(
        torch.as_tensor(ours), expected, rtol=tolerance, atol=tolerance
    )


def onnx_of(program, path):
    program.save(path)
    (opset,) = program.model_proto.opset_import
    assert opset.version >= 17
    session = onnxruntime.InferenceSession(path)
    (name,) = (given.name for given in session.get_inputs())
    return lambda x: session.run(None, {name: x.numpy()})[0]


def test_trace(model):
    x = images()
    traced = torch.jit.trace(model, x, check_trace=False)
    for x in (x, images(batch=3)):
        same(traced(x), model(x))


def test_compile_without_graph_breaks(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    same(compiled(images()), model(images()))


@pytest.mark.slow
def test_export(model, dynamic):
    exported = dynamic.module()
    for x in (images(), OTHER):
        same(exported(x), model(x))


@pytest.mark.slow
def test_onnx(model, tmp_path):
    x = images()
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    same(onnx_of(program, tmp_path / 'fixed.onnx')(x), model(x), 1e-4)


@pytest.mark.slow
def test_onnx_of_any_size(model, dynamic, tmp_path):
    program = torch.onnx.export(dynamic, dynamo=True, verbose=False)
    run = onnx_of(program, tmp_path / 'dynamic.onnx')
    for x in (images(), OTHER):
        same(run(x), model(x), 1e-4)


def run_onnx(model, x):
    session = onnxruntime.InferenceSession(model)
    (name,) = (given.name for given in session.get_inputs())
    return session.run(None, {name: x.numpy()})[0]


@pytest.mark.parametrize('hooked', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_torchscript_exporter_with_any_batch_and_size(kind, hooked):
    """What mmdeploy uses."""
    block = make_block(*kind, 16).eval().requires_grad_(False)
    if hooked:  # so the block calls its layers
        next(block.children()).register_forward_hook(lambda *_: None)
    buffer = io.BytesIO()
    torch.onnx.export(
        block,
        (torch.rand(2, 16, 8, 8),),
        buffer,
        input_names=['x'],
        dynamic_axes={'x': {0: 'n', 2: 'h', 3: 'w'}},
        dynamo=False,
    )
    for shape in ((2, 16, 8, 8), (3, 16, 5, 9), (1, 16, 1, 1)):
        x = torch.rand(shape)
        same(run_onnx(buffer.getvalue(), x), block(x), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_dynamo_exporter_with_any_batch_and_size(kind, tmp_path):
    block = make_block(*kind, 16).eval().requires_grad_(False)
    shapes = (
        {
            i: torch.export.Dim(n, max=64)
            for i, n in ((0, 'n'), (2, 'h'), (3, 'w'))
        },
    )
    program = torch.onnx.export(
        block,
        (torch.rand(2, 16, 8, 8),),
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    run = onnx_of(program, tmp_path / 'block.onnx')
    for shape in ((2, 16, 8, 8), (3, 16, 5, 9)):
        x = torch.rand(shape)
        same(run(x), block(x), 1e-4)
