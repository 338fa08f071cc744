"""What is published of a checkpoint."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_script, torch_load
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub
from mmengine.runner import load_checkpoint
from torch import nn

import mmpsa


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), mmpsa.PSA(4))


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with what mmengine's have, and its weights."""
    trained = model()
    trained[1].running_var.fill_(1e6)
    hub = MessageHub.get_instance('mmpsa-publish')
    hub.update_scalar('train/loss', 1.0)
    content = dict(
        meta=dict(cfg='x = 1\n', dataset_meta=dict(sigmas=np.ones(3))),
        state_dict=trained.state_dict(),
        message_hub=hub.state_dict(),
        optimizer=torch.optim.Adam(trained.parameters()).state_dict(),
        param_schedulers=[],
    )
    path = tmp_path / 'epoch_1.pth'
    torch.save(content, path)
    return path, content


@pytest.fixture
def publish(checkpoint, tmp_path, capsys):
    """Run the script on the checkpoint; gives the file that it names."""

    def publish(*options):
        out = tmp_path / 'zoo/model'
        run_script('tools/publish_model.py', checkpoint[0], out, *options)
        path, size = capsys.readouterr().out.splitlines()[-1].split(': ')
        assert size.endswith(' MB')
        return Path(path)

    return publish


def test_paths_are_made_relative(publish, checkpoint, tmp_path, monkeypatch):
    path, content = checkpoint
    content['meta']['cfg'] = f"work_dir = '{tmp_path}/work_dirs/x'\n"
    torch.save(content, path)
    monkeypatch.chdir(tmp_path)
    meta = torch_load(publish(), weights_only=True)['meta']
    assert meta['cfg'] == "work_dir = 'work_dirs/x'\n"


def test_what_is_kept(publish, checkpoint, monkeypatch):
    path = publish('--metric', 'PCK=51.2', '--metric', 'bbox@0.1/PCK=5e-1')
    digest = sha256(path.read_bytes()).hexdigest()
    assert path.name == f'model-{digest[:8]}.pth'

    monkeypatch.setenv('MMPSA_ZOO', str(path.parent))
    loaded = model()
    published = load_checkpoint(loaded, 'mmpsa://model', strict=True)
    _, original = checkpoint
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, original['state_dict'][key])
    assert published.keys() == {'state_dict', 'meta'}
    meta = published['meta']
    assert meta['cfg'] == 'x = 1\n'
    assert (meta['dataset_meta']['sigmas'] == 1).all()
    assert meta['metrics'] == {'PCK': 51.2, 'bbox@0.1/PCK': 0.5}
    versions = meta['versions']
    assert versions['mmpsa'] == mmpsa.__version__
    assert versions['torch'] == torch.__version__
    assert {'mmengine', 'mmcv'} < versions.keys()


def test_nothing_is_overwritten(publish):
    path = publish()
    content = path.read_bytes()
    with pytest.raises(SystemExit, match=f'{path.name} exists'):
        publish()
    assert path.read_bytes() == content


def test_half(publish, checkpoint):
    state_dict = torch_load(publish('--half'))['state_dict']
    assert state_dict['0.weight'].dtype == torch.float16
    assert (state_dict['1.running_var'] == 1e6).all()
    assert state_dict['1.num_batches_tracked'].dtype == torch.int64
    # the versions of the modules are there still
    assert state_dict._metadata == model().state_dict()._metadata
    original = checkpoint[1]['state_dict']
    for key, tensor in state_dict.items():
        torch.testing.assert_close(
            tensor.float(), original[key].float(), rtol=1e-3, atol=1e-7
        )


def test_too_large_for_half(publish, checkpoint):
    path, content = checkpoint
    content['state_dict']['0.bias'][0] = 1e5
    torch.save(content, path)
    with pytest.raises(SystemExit, match=r'0\.bias .*100000'):
        publish('--half')


def test_averaged_weights_are_published(publish, checkpoint):
    """As mmengine's hook leaves them in the file."""
    path, content = checkpoint
    averaged = model()
    hook = EMAHook()
    hook.ema_model = nn.Module()
    hook.ema_model.module = averaged
    hook.before_save_checkpoint(None, content)
    torch.save(content, path)
    published = torch_load(publish())
    assert 'ema_state_dict' not in published
    for key, tensor in averaged.state_dict().items():
        assert torch.equal(published['state_dict'][key], tensor)


def test_not_a_checkpoint_of_mmengine(publish, checkpoint):
    path, content = checkpoint
    torch.save(content['state_dict'], path)
    with pytest.raises(SystemExit, match=f'{path}.*no meta and no state_dict'):
        publish()


def test_file_that_is_no_checkpoint(publish, checkpoint):
    path, _ = checkpoint
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=f'publish_model: {path} must be'):
        publish()


@pytest.mark.parametrize('given', ['mIoU', 'mIoU=high'])
def test_metric_that_is_none(publish, capsys, given):
    with pytest.raises(SystemExit):
        publish('--metric', given)
    assert f"invalid metric value: '{given}'" in capsys.readouterr().err
