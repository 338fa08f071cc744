"""A training of a second: what the plans of these tests compare."""

import os
import signal
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn

import mmpsa


@DATASETS.register_module()
class ToyPictures(torch.utils.data.Dataset):
    """Noise; a picture's label is whether it is bright."""

    def __init__(self):
        noise = torch.Generator().manual_seed(0)
        self.pictures = torch.rand(16, 3, 8, 8, generator=noise)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        x = self.pictures[index]
        return dict(inputs=x, data_samples=(x.mean() > 0.5).float())


@MODELS.register_module()
@mmpsa.pluggable
class ToyBackbone(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.conv(x)


@MODELS.register_module()
class ToyModel(BaseModel):
    """Scores a picture by the mean of its map."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        scores = self.backbone(torch.stack([*inputs])).mean((1, 2, 3))
        if mode != 'loss':
            return scores
        labels = torch.stack(data_samples)
        # noise as an augmentation draws it: what the seed must pair
        scores = scores + 0.1 * torch.randn(len(scores))
        return dict(
            loss=nn.functional.binary_cross_entropy_with_logits(scores, labels)
        )


@METRICS.register_module()
class ToyScore(BaseMetric):
    def process(self, data_batch, data_samples):
        for score, label in zip(data_samples, data_batch['data_samples']):
            self.results.append(float((score > 0) == (label > 0)))

    def compute_metrics(self, results):
        score = 100 * sum(results) / len(results)
        return dict(score=score, text='not a number')


@HOOKS.register_module()
class Killed(Hook):
    """Dies at an iteration, as if killed, unless the file is there."""

    def __init__(self, file, iteration):
        self.file = Path(file)
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, **kwargs):
        if runner.iter + 1 == self.iteration and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class Widen(Hook):
    """Adds parameters before a training, as many as there are."""

    def before_run(self, runner):
        width = runner.model.backbone.conv.out_channels
        runner.model.more = nn.Conv2d(3, width, 3)
