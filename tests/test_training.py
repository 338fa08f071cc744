"""What mmengine's runner does to a model with plugins in its backbone."""

import copy

import pytest
import torch
import torch.distributed as dist
from helpers import AUTOCAST_DTYPES, BACKBONES, Probe, build, images, positions
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn


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


def run(work_dir, epochs, model, **kwargs):
    """Train on the pictures; the same data order in every run."""
    runner = Runner(
        model,
        str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            dataset=Pictures(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-2)),
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
        torch.testing.assert_close(a[key], b[key], msg=key)

    file = torch.load(tmp_path / 'whole' / 'epoch_2.pth', map_location='cpu')
    averaged = {
        key[len('module.') :]: value
        for key, value in file['ema_state_dict'].items()
        if key.startswith('module.')
    }
    assert averaged.keys() == file['state_dict'].keys()
    changed = 'backbone.layer1.0.psa.ch_wv.weight'
    assert not torch.equal(averaged[changed], file['state_dict'][changed])


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_wrapped_for_distributed_training(process_group):
    """Every parameter of a plugin takes part, none is left over."""
    cfg = model_cfg('mmpose', 'ResNet18')
    cfg['backbone'].pop('norm_cfg')
    model = MODELS.build(cfg)
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
    with torch.autocast('cpu', dtype=dtype):
        out = backbone(images())[-1]
    assert out.dtype == dtype
    assert out.isfinite().all()
