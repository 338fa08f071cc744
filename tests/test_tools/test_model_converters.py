"""Converted checkpoints compute what the originals do."""

import copy
from collections import OrderedDict
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import pytest
import torch
import torch.nn.functional as F
from helpers import images, randomise, run_script, upstream
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmseg.apis import init_model
from mmseg.models.backbones.hrnet import HRNet as UpstreamHRNet
from mmseg.models.backbones.resnet import BasicBlock, Bottleneck
from mmseg.utils import get_classes, get_palette
from torch import nn

from mmpsa import PolarizedSelfAttention
from mmpsa.ops import reference

WIDTHS = (8, 16, 32, 64)
CLASSES = 19  # as Cityscapes has
PSA = dict(type='PSA', identity_init=True)
OFFICIAL = dict(type='PSA', variant='official')
BASIC_STAGES = (False, True, True, True)


def stage(branches, block='BASIC'):
    return dict(
        num_modules=1,
        num_branches=branches,
        block=block,
        num_blocks=(1,) * branches,
        num_channels=WIDTHS[:branches],
    )


HRNET = dict(
    stage1=stage(1, 'BOTTLENECK'),
    stage2=stage(2),
    stage3=stage(3),
    stage4=stage(4),
)


def ocrnet(**backbone):
    """mmseg's OCRNet with HRNetV2, small."""
    head = dict(
        in_channels=WIDTHS,
        in_index=(0, 1, 2, 3),
        input_transform='resize_concat',
        dropout_ratio=-1,
        num_classes=CLASSES,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    )
    return dict(
        type='CascadeEncoderDecoder',
        num_stages=2,
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(type='HRNet', extra=HRNET, **backbone),
        decode_head=[
            dict(
                type='FCNHead',
                channels=sum(WIDTHS),
                kernel_size=1,
                num_convs=1,
                concat_input=False,
                **head,
            ),
            dict(type='OCRHead', channels=16, ocr_channels=8, **head),
        ],
        test_cfg=dict(mode='whole'),
    )


def pose(**backbone):
    """mmpose's SimpleBaseline, small."""
    codec = dict(
        type='MSRAHeatmap', input_size=(64, 64), heatmap_size=(16, 16), sigma=1
    )
    return dict(
        type='TopdownPoseEstimator',
        data_preprocessor=dict(type='PoseDataPreprocessor'),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            stem_channels=8,
            **backbone,
        ),
        head=dict(
            type='HeatmapHead',
            in_channels=64,
            out_channels=4,
            deconv_out_channels=(8,),
            deconv_kernel_sizes=(4,),
            loss=dict(type='KeypointMSELoss'),
            decoder=codec,
        ),
    )


def plugins(psa, **entry):
    return [dict(cfg=psa, position='after_conv1', **entry)]


def build(model, scope):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(copy.deepcopy(model))


def load_file(path):
    return torch.load(path)['state_dict']


def outputs(model):
    with torch.no_grad():
        return model.eval()(images(), None, mode='tensor')


class LineByLine(PolarizedSelfAttention):
    """The block by the reference, with the names that others give it.

    Its state dict has no more than the re-implementation's.
    """

    _version = 1

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._non_persistent_buffers_set.add('mask_scale')

    def forward(self, x):
        return reference.polarized_self_attention(x, self.weights, self.spec)


def trunk(attribute, attention):
    """HRNet with an attention written into its BasicBlocks."""

    class Block(BasicBlock):
        def __init__(self, inplanes, planes, *args, **kwargs):
            super().__init__(inplanes, planes, *args, **kwargs)
            self.add_module(attribute, attention(planes))

        def forward(self, x):
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(getattr(self, attribute)(out)))
            if self.downsample is not None:
                x = self.downsample(x)
            return self.relu(out + x)

    class HRNet(UpstreamHRNet):
        blocks_dict = {'BASIC': Block, 'BOTTLENECK': Bottleneck}

    return HRNet(HRNET)


def bn_relu(channels):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def project(inner, outer, num_convs):
    layers = []
    for i in range(num_convs):
        conv = nn.Conv2d(inner if i else outer, inner, 1, bias=False)
        layers += [conv, bn_relu(inner)]
    return nn.Sequential(*layers)


class AuthorsOCR(nn.Module):
    """The OCR head, with NVIDIA's names."""

    def __init__(self, high=sum(WIDTHS), mid=16, key=8):
        super().__init__()
        self.conv3x3_ocr = nn.Sequential(
            nn.Conv2d(high, mid, 3, padding=1), bn_relu(mid)
        )
        self.ocr_distri_head = nn.Module()
        block = self.ocr_distri_head.object_context_block = nn.Module()
        block.f_pixel = project(key, mid, 2)
        block.f_object = project(key, mid, 2)
        block.f_down = project(key, mid, 1)
        block.f_up = project(mid, key, 1)
        self.ocr_distri_head.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(2 * mid, mid, 1, bias=False),
            bn_relu(mid),
            nn.Dropout2d(0.05),
        )
        self.cls_head = nn.Conv2d(mid, CLASSES, 1)
        self.aux_head = nn.Sequential(
            nn.Conv2d(high, high, 1),
            bn_relu(high),
            nn.Conv2d(high, CLASSES, 1),
        )

    def forward(self, x):
        feats = self.conv3x3_ocr(x)
        regions = self.aux_head(x).flatten(2).softmax(-1)  # N×K×P
        regions = torch.einsum('nkp,ncp->nck', regions, feats.flatten(2))
        block = self.ocr_distri_head.object_context_block
        query = block.f_pixel(feats).flatten(2)
        key = block.f_object(regions[..., None]).flatten(2)
        value = block.f_down(regions[..., None]).flatten(2)
        weights = torch.einsum('ncp,nck->npk', query, key)
        weights = (weights / query.shape[1] ** 0.5).softmax(-1)
        context = torch.einsum('npk,nck->ncp', weights, value)
        context = block.f_up(context.unflatten(-1, feats.shape[2:]))
        both = torch.cat([context, feats], 1)
        return self.cls_head(self.ocr_distri_head.conv_bn_dropout(both))


class AuthorsNet(nn.Module):
    """The authors' network at one scale, with their names."""

    def __init__(self, layout):
        super().__init__()
        psa = partial(LineByLine, layout=layout, variant='official')
        self.backbone = trunk('deattn', psa)
        self.ocr = AuthorsOCR()
        self.scale_attn = nn.Sequential()
        self.scale_attn.add_module('conv0', nn.Conv2d(16, 8, 3, bias=False))
        self.scale_attn.add_module('bn0', nn.BatchNorm2d(8))

    def forward(self, x):
        first, *rest = self.backbone(x)
        size = first.shape[2:]
        rest = [F.interpolate(r, size=size, mode='bilinear') for r in rest]
        return self.ocr(torch.cat([first, *rest], 1))


@pytest.fixture
def convert(tmp_path):
    """Run a converter's main on a state dict.

    Returns the model of the config with the converted weights, and the lines
    on the screen; the model is None where no config is given.
    """

    def run(script, weights, model=None, scope='mmseg', args=(), **settings):
        torch.save(weights, run.source)
        argv = [run.source, run.target, *args]
        if model:
            config = Config(
                dict(
                    default_scope=scope,
                    model=model,
                    custom_imports=dict(imports=['mmpsa']),
                    **settings,
                )
            )
            config.dump(run.config)
            argv.insert(2, run.config)
        with redirect_stdout(StringIO()) as screen:
            run_script(f'tools/model_converters/{script}.py', *argv)
        lines = screen.getvalue().splitlines()
        if not model:
            return None, lines
        converted = build(model, scope)
        load_checkpoint(
            converted, str(run.target), strict=True, logger='silent'
        )
        return converted, lines

    run.source, run.target = tmp_path / 'in.pth', tmp_path / 'out.pth'
    run.config = tmp_path / 'config.py'
    return run


@pytest.mark.parametrize(
    'layout, wrapped', [('parallel', False), ('sequential', True)]
)
def test_authors_network(convert, layout, wrapped):
    theirs = randomise(AuthorsNet(layout))
    weights = theirs.state_dict()
    if wrapped:
        weights = {f'module.{key}': t for key, t in weights.items()}
        weights = dict(state_dict=weights, optimizer={}, mean_iu=0.5)
    psa = plugins(dict(OFFICIAL, layout=layout), stages=BASIC_STAGES)
    ours, lines = convert('authors_ocrnet', weights, ocrnet(plugins=psa))
    with torch.no_grad():
        expected = theirs.eval()(images())
    torch.testing.assert_close(outputs(ours), expected)

    listed = {line.split(' (')[0].strip() for line in lines}
    assert {
        key for key in theirs.state_dict() if key.startswith('scale_attn')
    } <= listed
    assert ({'optimizer', 'mean_iu'} <= listed) == wrapped
    assert any(f'layout={layout!r}' in line for line in lines)


def test_authors_network_trains_on_as_it_did(convert):
    # The folded bias: batch statistics take it away, running ones carry it.
    theirs = randomise(AuthorsNet('parallel'))
    psa = plugins(OFFICIAL, stages=BASIC_STAGES)
    model = ocrnet(plugins=psa)
    ours, _ = convert('authors_ocrnet', theirs.state_dict(), model)
    theirs.ocr.ocr_distri_head.conv_bn_dropout[2].p = 0.0
    with torch.no_grad():
        theirs.train()(images())
        ours.train()(images(), mode='tensor')
        expected = theirs.eval()(images())
    torch.testing.assert_close(outputs(ours), expected)


def test_authors_network_lists_what_is_unknown(convert):
    weights = AuthorsNet('parallel').state_dict()
    weights['ocr.ocr_distri_head.aspp.0.weight'] = torch.zeros(1)
    _, lines = convert('authors_ocrnet', weights)
    assert '    ocr.ocr_distri_head.aspp.0.weight (unknown)' in lines
    kept = load_file(convert.target)
    scale_attn = [key for key in weights if key.startswith('scale_attn')]
    # That one and two biases, folded.
    assert len(kept) == len(weights) - len(scale_attn) - 1 - 2


@pytest.mark.parametrize(
    'key',
    [
        'ocr.conv3x3_ocr.0.bias',
        'ocr.aux_head.0.bias',
        'ocr.aux_head.1.0.running_mean',
        'ocr.aux_head.0.weight',
        'ocr.cls_head.bias',
        'ocr.ocr_distri_head.object_context_block.f_up.1.0.weight',
    ],
)
def test_authors_network_without_a_part_is_refused(convert, key):
    weights = AuthorsNet('parallel').state_dict()
    del weights[key]
    with pytest.raises(SystemExit, match='lacks the 1 listed'):
        convert('authors_ocrnet', weights)
    assert not convert.target.exists()


def test_half_of_the_authors_network_is_refused(convert):
    for part in ('backbone.', 'ocr.'):
        weights = {
            key: tensor
            for key, tensor in AuthorsNet('parallel').state_dict().items()
            if key.startswith(part)
        }
        with pytest.raises(SystemExit, match='lacks the [0-9]+ listed'):
            convert('authors_ocrnet', weights)


def test_authors_bias_of_another_shape_is_refused(convert):
    weights = AuthorsNet('parallel').state_dict()
    key = 'ocr.aux_head.0.bias'
    weights[key] = weights[key][:1]  # would be broadcast
    with pytest.raises(SystemExit, match=r'ocr\.aux_head\.0\.bias.*\(1,\)'):
        convert('authors_ocrnet', weights)


def test_mmsegs_own_network_is_refused(convert):
    psa = plugins(OFFICIAL, stages=BASIC_STAGES)
    weights = build(ocrnet(plugins=psa), 'mmseg').state_dict()
    with pytest.raises(SystemExit, match='names like decode_head'):
        convert('authors_ocrnet', weights)
    assert not convert.target.exists()


@pytest.mark.parametrize('with_config', [False, True])
def test_authors_network_knows_cityscapes(convert, with_config):
    """It has what mmseg's init_model reads."""
    weights = AuthorsNet('parallel').state_dict()
    model = ocrnet(plugins=plugins(OFFICIAL, stages=BASIC_STAGES))
    convert('authors_ocrnet', weights, model)
    if not with_config:
        convert('authors_ocrnet', weights)
    loaded = init_model(str(convert.config), str(convert.target), device='cpu')
    assert loaded.dataset_meta['classes'] == get_classes('cityscapes')
    assert loaded.dataset_meta['palette'] == get_palette('cityscapes')


DATA = dict(  # PascalVOCDataset asks for its files when it is built
    type='PascalVOCDataset',
    metainfo=dict(classes=('a', 'b', 'c'), palette=[[0] * 3] * 3),
    ann_file='not there',
    pipeline=[],
)


def test_authors_network_of_other_data(convert, monkeypatch):
    monkeypatch.setitem(globals(), 'CLASSES', 3)
    weights = AuthorsNet('parallel').state_dict()
    _, lines = convert('authors_ocrnet', weights)
    assert any('No names are known for 3 classes' in line for line in lines)
    assert 'dataset_meta' not in torch.load(convert.target)['meta']
    model = ocrnet(plugins=plugins(OFFICIAL, stages=BASIC_STAGES))
    data = dict(test_dataloader=dict(dataset=DATA))
    convert('authors_ocrnet', weights, model, **data)
    loaded = init_model(str(convert.config), str(convert.target), device='cpu')
    assert loaded.dataset_meta['classes'] == DATA['metainfo']['classes']


@pytest.mark.parametrize(
    'script', ['authors_ocrnet', 'reimplementation', 'add_identity_psa']
)
def test_file_that_is_no_checkpoint(convert, script):
    """The end is one line that names the file."""
    argv = [convert.source, convert.target, convert.config]
    for content in (b'', b'<html>', None, [1], dict(epoch=3), {1: 2}):
        convert.source.unlink(missing_ok=True)
        if isinstance(content, bytes):
            convert.source.write_bytes(content)
        elif content is None:
            convert.source.mkdir()
        else:
            torch.save(content, convert.source)
        with pytest.raises(SystemExit) as stopped:
            run_script(f'tools/model_converters/{script}.py', *argv)
        (line,) = stopped.value.code.splitlines()
        assert line.startswith(f'{script}: {convert.source} ')
        if content is None:
            convert.source.rmdir()
    assert not convert.target.exists()


def test_interrupted_writing(convert, monkeypatch):
    """The file that was there stays."""
    weights = reimplemented().state_dict()
    convert('reimplementation', weights)
    before, folder = convert.target.read_bytes(), convert.target.parent
    files = set(folder.iterdir())

    def save(content, file):
        if file == convert.source:
            return original(content, file)
        file.write(b'part')
        raise KeyboardInterrupt

    original = torch.save
    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(KeyboardInterrupt):
        convert('reimplementation', weights)
    assert convert.target.read_bytes() == before
    assert set(folder.iterdir()) == files


def test_nothing_of_the_authors_is_refused(convert):
    with pytest.raises(SystemExit, match='names like conv1.weight'):
        convert('authors_ocrnet', upstream('mmseg', 'ResNet18').state_dict())
    with pytest.raises(SystemExit, match="has the keys .'epoch'"):
        convert('authors_ocrnet', dict(epoch=3))
    assert not convert.target.exists()


def reimplemented(layout='parallel'):
    model = build(ocrnet(), 'mmseg')
    model.backbone = trunk('attn', partial(LineByLine, layout=layout))
    return randomise(model)


@pytest.mark.parametrize(
    'layout, name, args',
    [
        ('parallel', 'psa', ()),
        ('sequential', 'psa1', ('--name', 'psa1')),
        ('sequential', 'psa', ()),
    ],
)
@pytest.mark.parametrize('kind', [OrderedDict, dict])
def test_reimplementation(convert, layout, name, args, kind):
    """With the versions of the modules and without them."""
    theirs = reimplemented(layout)
    psa = dict(type='PSA', layout=layout, postfix=name[3:])
    psa.update(identity_init=True)  # a mask_scale that is not theirs
    model = ocrnet(plugins=plugins(psa, stages=BASIC_STAGES))
    weights = theirs.state_dict()
    if kind is dict:
        weights = dict(weights)
    ours, lines = convert('reimplementation', weights, model, args=args)
    ours.load_state_dict(load_file(convert.target))  # torch's own loader
    torch.testing.assert_close(outputs(ours), outputs(theirs))
    block = 'backbone.stage2.0.branches.0.0'
    assert f'    {block}.attn → {block}.{name}' in lines


def test_reimplementation_lists_what_is_ambiguous(convert):
    block = PolarizedSelfAttention(8).state_dict()
    weights = {
        f'{path}.{key}': tensor
        for path in ('layer.attn', 'sum.a', 'sum.b', 'net.3', 'short')
        for key, tensor in block.items()
    }
    del weights['short.sp_wv.bias']
    weights['ln.weight'] = torch.zeros(8)  # of something else
    _, lines = convert('reimplementation', weights)
    listed = {line.split(' (')[0].strip() for line in lines if ' (' in line}
    assert listed == {'sum.a', 'sum.b', 'net.3', 'short'}
    assert '    layer.attn → layer.psa' in lines
    renamed = {key.replace('layer.attn', 'layer.psa') for key in weights}
    assert set(load_file(convert.target)) == renamed


def test_variants_do_not_convert(convert):
    paper = plugins(dict(type='PSA'), stages=BASIC_STAGES)
    official = plugins(OFFICIAL, stages=BASIC_STAGES)
    theirs, others = AuthorsNet('parallel'), reimplemented()
    for script, weights, model in (
        ('authors_ocrnet', theirs.state_dict(), ocrnet(plugins=paper)),
        ('reimplementation', others.state_dict(), ocrnet(plugins=official)),
        ('reimplementation', theirs.state_dict(), ocrnet(plugins=paper)),
    ):
        with pytest.raises(SystemExit, match='Shapes and arithmetic differ'):
            convert(script, weights, model)
    assert not convert.target.exists()


def test_config_of_another_model_is_refused(convert):
    weights = AuthorsNet('sequential').state_dict()
    for psa in ([], plugins(OFFICIAL), plugins(OFFICIAL, stages=BASIC_STAGES)):
        with pytest.raises(SystemExit, match='must describe the model'):
            convert('authors_ocrnet', weights, ocrnet(plugins=psa))
    assert not convert.target.exists()


@pytest.mark.parametrize(
    'scope, network', [('mmseg', ocrnet), ('mmpose', pose)]
)
@pytest.mark.parametrize('layout', ['parallel', 'sequential'])
def test_identity_psa(convert, scope, network, layout):
    baseline = randomise(build(network(), scope))
    checkpoint = dict(
        state_dict=baseline.state_dict(),
        meta=dict(dataset_meta=dict(classes=('a', 'b')), cfg='old'),
    )
    model = network(plugins=plugins(dict(PSA, layout=layout)))
    ours, _ = convert('add_identity_psa', checkpoint, model, scope)
    assert any(isinstance(m, PolarizedSelfAttention) for m in ours.modules())
    assert torch.equal(outputs(ours), outputs(baseline))
    meta = torch.load(convert.target)['meta']
    assert meta['dataset_meta'] == dict(classes=('a', 'b'))
    assert 'identity_init' in meta['cfg']


def test_identity_psa_takes_the_data_of_the_config(convert):
    """Where the checkpoint does not say what it was trained on."""
    weights = build(ocrnet(), 'mmseg').state_dict()
    convert(
        'add_identity_psa',
        weights,
        ocrnet(plugins=plugins(PSA)),
        test_dataloader=dict(dataset=DATA),
    )
    meta = torch.load(convert.target)['meta']
    assert meta['dataset_meta']['classes'] == DATA['metainfo']['classes']


def test_identity_psa_lists_what_the_model_has_not(convert):
    weights = build(pose(), 'mmpose').state_dict()
    weights['head.extra'] = torch.zeros(1)
    model = pose(plugins=plugins(PSA))
    _, lines = convert('add_identity_psa', weights, model, 'mmpose')
    assert '    head.extra' in lines


def test_identity_psa_is_refused(convert):
    weights = build(pose(), 'mmpose').state_dict()
    psa = build(pose(plugins=plugins(PSA)), 'mmpose').state_dict()
    part = {key: t for key, t in weights.items() if key[:4] != 'head'}
    for given, backbone, message in (
        (weights, {}, 'its model has none'),
        (weights, dict(plugins=plugins(OFFICIAL)), 'identity_init=True'),
        (psa, dict(plugins=plugins(PSA)), 'must have no PSA weights'),
        (part, dict(plugins=plugins(PSA)), 'but PSA; it lacks'),
    ):
        with pytest.raises(SystemExit, match=message):
            convert('add_identity_psa', given, pose(**backbone), 'mmpose')
    wide = plugins(PSA)
    with pytest.raises(SystemExit, match='size mismatch'):
        model = pose(plugins=wide)
        model['backbone']['base_channels'] = 16
        model['head']['in_channels'] = 128
        convert('add_identity_psa', weights, model, 'mmpose')
    assert not convert.target.exists()
