"""What mmengine's runner does to a model with plugins in its backbone."""

import copy
import random
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import (
    AUTOCAST_DTYPES,
    BACKBONES,
    Probe,
    build,
    draw_weights,
    images,
    positions,
    randomise,
    torch_load,
)
from mmengine.evaluator import BaseMetric
from mmengine.model import (
    BaseModel,
    MMDistributedDataParallel,
    convert_sync_batchnorm,
)
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner
from torch import nn

from mmpsa import PolarizedSelfAttention


@MODELS.register_module()
class Toy(BaseModel):
    """A backbone and the smallest head that can be trained."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(64, 1, 1)

    def forward(self, x, mode='tensor'):
        out = self.head(self.backbone(torch.stack(list(x)))[-1])
        return dict(loss=(out - 1).pow(2).mean()) if mode == 'loss' else out


@METRICS.register_module()
class Sum(BaseMetric):
    """Of the outputs: whatever changes, it changes."""

    def process(self, data_batch, data_samples):
        self.results += [out.double().sum().item() for out in data_samples]

    def compute_metrics(self, results):
        return dict(sum=sum(results))


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(x=images()[index % 2] * (1 + index))


def model_cfg(codebase, name):
    plugins = [
        dict(
            cfg=dict(type='PSA', layout='sequential', identity_init=True),
            position='after_conv1',
        ),
        *(
            dict(cfg=dict(type='Probe', postfix=p), position=p)
            for p in positions(name)
        ),
    ]
    backbone = dict(
        copy.deepcopy(BACKBONES[codebase][name]),
        plugins=plugins,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    )
    return dict(type='Toy', backbone=dict(backbone, _scope_=codebase))


def pictures(batch_size):
    return dict(
        batch_size=batch_size,
        dataset=Pictures(),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )


def run(work_dir, epochs, model, batch_size=4, wrapper=None, **kwargs):
    """Train on the pictures; the same data order in every run."""
    runner = Runner(
        model,
        str(work_dir),
        train_dataloader=pictures(batch_size),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            dict(optimizer=dict(type='Adam', lr=1e-2)), **(wrapper or {})
        ),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        randomness=dict(seed=0),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name}-{epochs}',
        **kwargs,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    'codebase, name', [('mmpose', 'ResNet18'), ('mmseg', 'ResNet18')]
)
def test_train_save_resume(codebase, name, tmp_path):
    """SyncBN reverted, EMA, resumed: the same as in one go."""
    model = model_cfg(codebase, name)
    runner = run(tmp_path / 'whole', 2, copy.deepcopy(model))
    steps = 2 * len(runner.train_dataloader)
    probes = [m for m in runner.model.modules() if isinstance(m, Probe)]
    assert len(probes) == 8 * len(positions(name))
    assert {p.calls for p in probes} == {steps}
    # trained, not only run
    assert all((p.weight != 1).any() for p in probes)

    run(tmp_path / 'cut', 1, copy.deepcopy(model))
    resumed = run(tmp_path / 'cut', 2, copy.deepcopy(model), resume=True)
    a, b = runner.model.state_dict(), resumed.model.state_dict()
    assert a.keys() == b.keys()
    assert a['backbone.layer1.0.psa.mask_scale'] == 2
    for key in a:
        assert torch.equal(a[key], b[key]), key

    file, again = (
        torch_load(tmp_path / name / 'epoch_2.pth', map_location='cpu')
        for name in ('whole', 'cut')
    )
    for key, value in file['ema_state_dict'].items():
        assert torch.equal(value, again['ema_state_dict'][key]), key
    averaged = {
        key[len('module.') :]: value
        for key, value in file['ema_state_dict'].items()
        if key.startswith('module.')
    }
    assert averaged.keys() == file['state_dict'].keys()
    changed = 'backbone.layer1.0.psa.ch_wv.weight'
    assert not torch.equal(averaged[changed], file['state_dict'][changed])


def still_norms(**kwargs):
    """A model whose norms do not look at the batch."""
    cfg = model_cfg('mmpose', 'ResNet18')
    cfg['backbone'].update(norm_eval=True, norm_cfg=dict(type='BN'), **kwargs)
    cfg['backbone']['plugins'][0]['cfg'].pop('identity_init')
    return cfg


SGD = dict(optimizer=dict(type='SGD', lr=1))


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """A checkpoint from which every gradient counts.

    With torch's own initialisation: the backbone's is next to nothing.
    """
    path = tmp_path_factory.mktemp('start') / 'start.pth'
    torch.manual_seed(0)
    model = draw_weights(MODELS.build(still_norms()))
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def changes(work_dir, start, model, **kwargs):
    """What an epoch of training adds to the parameters."""
    runner = run(work_dir, 1, model, load_from=str(start), **kwargs)
    before = torch.load(start)['state_dict']
    return {
        key: parameter.detach() - before[key]
        for key, parameter in runner.model.named_parameters()
    }


@pytest.fixture(scope='module')
def in_one_batch(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp('one')
    expected = changes(folder, start, still_norms(), batch_size=8, wrapper=SGD)
    # A constant added to the logits of a softmax changes nothing.
    assert all(c.any() for key, c in expected.items() if 'ch_wq.b' not in key)
    return expected


@pytest.mark.parametrize('with_cp', [False, True])
def test_accumulated_gradients(with_cp, start, in_one_batch, tmp_path):
    """Two batches of four are one of eight, checkpointed or not."""
    model = still_norms(with_cp=with_cp)
    wrapper = dict(SGD, accumulative_counts=2)
    found = changes(tmp_path, start, model, wrapper=wrapper)
    for key, expected in in_one_batch.items():
        torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-6)


def test_mixed_precision(start, in_one_batch, tmp_path, monkeypatch):
    """mmengine's wrapper, which runs on a CPU but does not say so."""
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'is_cuda_available', lambda: True
    )
    amp = dict(SGD, type='AmpOptimWrapper', dtype='bfloat16')
    found = changes(tmp_path, start, still_norms(), batch_size=8, wrapper=amp)
    for part in ('conv', 'bn', 'psa', 'probe'):
        ours, expected = (
            torch.cat(
                [c.flatten() for key, c in changed.items() if part in key]
            )
            for changed in (found, in_one_batch)
        )
        assert ours.dtype == torch.float32
        # bfloat16 has three digits, and each layer rounds to them.
        assert 0 < (ours - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize('codebase', ['mmpose', 'mmseg'])
@pytest.mark.parametrize('layout', ['parallel', 'sequential'])
def test_fine_tuning_starts_at_the_checkpoint(codebase, layout, tmp_path):
    """The metric before the first step is the checkpoint's, exactly."""
    metrics = []
    psa = dict(type='PSA', layout=layout, identity_init=True)
    for plugins in (None, [dict(cfg=psa, position='after_conv1')]):
        cfg = model_cfg(codebase, 'ResNet18')
        cfg['backbone']['plugins'] = plugins
        checkpoint = tmp_path / 'checkpoint.pth'
        if plugins is None:
            torch.save(randomise(MODELS.build(cfg)).state_dict(), checkpoint)
        runner = Runner(
            cfg,
            str(tmp_path),
            load_from=str(checkpoint),
            val_dataloader=pictures(4),
            val_cfg=dict(),
            val_evaluator=dict(type='Sum'),
            default_scope='mmengine',
            experiment_name=f'{codebase}-{layout}-{bool(plugins)}',
        )
        metrics.append(runner.val()['sum'])
    assert metrics[0] == metrics[1] != 0


@MODELS.register_module()
class RandomToy(Toy):
    """Draws random numbers to start and in each step."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.head = nn.Sequential(nn.Dropout(0.5), self.head)


@MODELS.register_module()
class FrozenPSA(PolarizedSelfAttention):
    _abbr_ = 'psa'

    def __init__(self, in_channels):
        super().__init__(in_channels, identity_init=True)
        self.requires_grad_(False)


class RandomPictures(Pictures):
    """Augmented by all three generators."""

    def __getitem__(self, index):
        x = super().__getitem__(index)['x']
        noise = torch.rand(()) + np.random.rand() + random.random()
        return dict(x=x * noise.float())


def losses(work_dir, plugins, workers):
    """The losses of five iterations."""
    backbone = dict(BACKBONES['mmpose']['ResNet18'], plugins=plugins)
    runner = Runner(
        dict(type='RandomToy', backbone=dict(backbone, _scope_='mmpose')),
        str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            dataset=RandomPictures(),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            collate_fn=dict(type='pseudo_collate'),
            num_workers=workers,
        ),
        train_cfg=dict(by_epoch=False, max_iters=5),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-2)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        log_processor=dict(window_size=1, by_epoch=False),
        randomness=dict(seed=0),
        default_scope='mmengine',
        experiment_name=f'{work_dir.name} {workers} {plugins}'.replace(
            '/', ''
        ),
    )
    runner.train()
    return list(runner.message_hub.get_scalar('train/loss')._log_history)


@pytest.mark.parametrize(
    'workers, place',
    [
        (0, dict(position='after_3x3')),
        (0, dict(position='after_stage')),
        (0, dict(modules='layer2.*')),
        (2, dict(position='after_3x3')),
    ],
)
def test_plugins_change_no_other_random_number(workers, place, tmp_path):
    """Weights, dropout, order and augmentation of the data: bit for bit."""
    expected = losses(tmp_path, [], workers)
    assert len({*expected}) == 5
    psa = dict(place, cfg=dict(type='PSA', identity_init=True))
    trained = losses(tmp_path, [psa], workers)
    assert trained[0] == expected[0]
    assert trained != expected
    frozen = dict(place, cfg=dict(type='FrozenPSA'))
    assert losses(tmp_path, [frozen], workers) == expected


@contextmanager
def process_group(folder, rank=0, world_size=1):
    dist.init_process_group(
        'gloo',
        init_method=f'file://{folder}/store',
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=2),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def gradients(model, x):
    model(x, mode='loss')['loss'].backward()
    return {key: p.grad for key, p in model.named_parameters()}


def distributed_gradients(rank, folder):
    """What one process of two has after a step with its half of a batch."""
    with process_group(folder, rank, world_size=2):
        torch.manual_seed(rank)
        model = draw_weights(MODELS.build(still_norms())).train()
        wrapped = MMDistributedDataParallel(model)
        gradients(wrapped, images(batch=4)[2 * rank : 2 * rank + 2])
    return model


@pytest.mark.slow
def test_two_processes_are_one_with_both_batches(tmp_path):
    other = torch.multiprocessing.get_context('spawn').Process(
        target=distributed_gradients, args=(1, tmp_path), daemon=True
    )
    other.start()
    model = distributed_gradients(0, tmp_path)
    other.join()
    assert other.exitcode == 0
    found = {key: p.grad for key, p in model.named_parameters()}
    model.zero_grad()
    for key, expected in gradients(model, images(batch=4)).items():
        torch.testing.assert_close(
            found[key], expected, rtol=1e-4, atol=1e-8, msg=key
        )


def loaded_on_rank_0(rank, folder):
    """What one process of two computes after a load on rank 0 alone."""
    with process_group(folder, rank, world_size=2):
        block = MODELS.build(dict(type='PSA', in_channels=4, layout='channel'))
        if rank == 0:
            trained = dict(type='PSA', in_channels=4, layout='channel')
            trained = MODELS.build(dict(trained, identity_init=True))
            block.load_state_dict(trained.state_dict())
        x = torch.ones(1, 4, 2, 2)
        wrapped = nn.parallel.DistributedDataParallel(block)
        # Two forwards: each broadcasts the buffers.
        out = wrapped(x) + wrapped(x)
        out.sum().backward()
    assert torch.equal(out, 2 * x)


@pytest.mark.slow
def test_a_load_on_one_rank_is_one_for_all(tmp_path):
    other = torch.multiprocessing.get_context('spawn').Process(
        target=loaded_on_rank_0, args=(1, tmp_path), daemon=True
    )
    other.start()
    loaded_on_rank_0(0, tmp_path)
    other.join()
    assert other.exitcode == 0


def test_sync_batchnorm():
    """Converted, as for several GPUs, it trains as BN does."""
    cfg = model_cfg('mmpose', 'ResNet18')
    cfg['backbone']['norm_cfg'] = dict(type='BN')
    model = randomise(MODELS.build(cfg))
    synced = convert_sync_batchnorm(copy.deepcopy(model))
    expected = gradients(model, images())
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    found = gradients(synced, images())
    assert {m.calls for m in synced.modules() if isinstance(m, Probe)} == {1}
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], msg=key)


def test_wrapped_for_distributed_training(tmp_path):
    """Every parameter of a plugin takes part, none is left over."""
    model = MODELS.build(still_norms())
    with process_group(tmp_path):
        wrapped = MMDistributedDataParallel(model)
        for _ in range(2):
            wrapped(images(), mode='loss')['loss'].backward()
    probes = [m for m in model.modules() if isinstance(m, Probe)]
    assert {p.calls for p in probes} == {2}
    for key, parameter in model.named_parameters():
        if '.psa.' in key or 'probe' in key:
            assert parameter.grad is not None, key


@pytest.mark.parametrize('dtype', AUTOCAST_DTYPES)
def test_autocast_through_a_backbone(dtype):
    backbone = build(
        'mmpose',
        'ResNet18',
        plugins=[dict(cfg=dict(type='PSA'), position='after_conv1')],
    )
    draw_weights(backbone)
    with torch.autocast('cpu', dtype=dtype):
        out = backbone(images())[-1]
    assert out.dtype == dtype
    assert out.isfinite().all()
