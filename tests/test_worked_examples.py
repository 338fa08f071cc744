"""The worked examples: a backbone and an attention block of one's own."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope

pytest.importorskip('mmseg')

PROJECTS = Path(__file__).parents[1] / 'projects'
PLUGINS = {
    'own_backbone': {
        **{
            f'backbone.stages.{stage}.{block}.psa': 'PolarizedSelfAttention'
            for stage in (1, 2)
            for block in (0, 1)
        },
        **{
            f'backbone.stages.{stage}.1.context_block': 'ContextBlock'
            for stage in range(3)
        },
        'decode_head.convs.0.psa': 'PolarizedSelfAttention',
    },
    'own_attention': {
        f'{place}.own': 'OwnAttention'
        for place in (
            *(f'backbone.layer{i}.{j}' for i in (3, 4) for j in (0, 1)),
            *(f'neck.fpn_convs.{i}' for i in range(4)),
            'decode_head.convs.0',
        )
    },
}


def build(path):
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def example(project):
    model = build(PROJECTS / project / 'config.py')
    model.init_weights()
    return model


@pytest.mark.parametrize('project', PLUGINS)
class TestEveryExample:
    def test_plugins_are_where_the_config_says(self, project):
        kinds = set(PLUGINS[project].values())
        assert PLUGINS[project] == {
            name: type(module).__name__
            for name, module in example(project).named_modules()
            if type(module).__name__ in kinds
        }

    def test_it_trains(self, project):
        """Every plugin learns, and the loss falls."""
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        model = example(project)
        height, width = model.data_preprocessor.size
        labels = torch.arange(4).repeat_interleave(height // 4)
        labels = labels.view(1, height, 1).repeat(1, 1, width)
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        picture = labels.expand(3, height, width) * 60.0
        data = dict(inputs=[picture] * 2, data_samples=[sample] * 2)
        before = {n: p.clone() for n, p in model.named_parameters()}
        optim = OptimWrapper(torch.optim.AdamW(model.parameters(), 0.01))
        losses = [
            model.train_step(data, optim)['decode.loss_ce'] for _ in range(20)
        ]
        assert losses[-1] < losses[0] / 2
        learnt = {
            path
            for path in PLUGINS[project]
            for name, parameter in model.named_parameters()
            if name.startswith(f'{path}.')
            and not torch.equal(parameter, before[name])
        }
        assert learnt == PLUGINS[project].keys()


def test_own_attention_starts_as_the_identity():
    """Whatever the backbone's ``init_cfg`` does to its own convolutions."""
    model = example('own_attention').eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        gated = model(x)
        for name, module in model.named_modules():
            if name in PLUGINS['own_attention']:
                module.forward = lambda x: x
        assert torch.equal(gated, model(x))
