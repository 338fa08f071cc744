"""The worked example: a backbone and a block of one's own with plugins."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope

pytest.importorskip('mmseg')

CONFIG = Path(__file__).parents[1] / 'projects/own_backbone/config.py'


@pytest.fixture
def model():
    cfg = Config.fromfile(CONFIG)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def test_plugins_are_where_the_config_says(model):
    from mmcv.cnn.bricks import ContextBlock

    from mmpsa import PSA

    found = {
        name: type(module)
        for name, module in model.named_modules()
        if isinstance(module, (PSA, ContextBlock))
    }
    assert found == {
        **{
            f'backbone.stages.{stage}.{block}.psa': PSA
            for stage in (1, 2)
            for block in (0, 1)
        },
        **{
            f'backbone.stages.{stage}.1.context_block': ContextBlock
            for stage in range(3)
        },
        'decode_head.convs.0.psa': PSA,
    }


def test_it_trains(model):
    """Every plugin learns, and the loss falls."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.arange(4).repeat_interleave(16).view(1, 64, 1)
    labels = labels.repeat(1, 1, 64)
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    picture = labels.expand(3, 64, 64) * 60.0
    data = dict(inputs=[picture] * 2, data_samples=[sample] * 2)
    before = {n: p.clone() for n, p in model.named_parameters()}
    optim = OptimWrapper(torch.optim.AdamW(model.parameters(), 0.01))
    losses = [
        model.train_step(data, optim)['decode.loss_ce'] for _ in range(20)
    ]
    assert losses[-1] < losses[0] / 2
    for name, parameter in model.named_parameters():
        if '.psa.sp_wv' in name or 'context_block' in name:
            assert not torch.equal(parameter, before[name]), name
