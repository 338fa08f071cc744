"""What ``mmpsa://`` finds, and what it refuses."""

import io
import pickle
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPO, serve
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from mmpsa import zoo
from mmpsa.compatibility import release


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty zoo that MMPSA_ZOO names."""
    path = tmp_path / 'zoo'
    path.mkdir()
    monkeypatch.setenv('MMPSA_ZOO', str(path))
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    return tmp_path / 'hub/checkpoints'


def publish(folder, name, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    digest = sha256(buffer.getvalue()).hexdigest()
    path = folder / f'{name}-{digest[:8]}.pth'
    path.write_bytes(buffer.getvalue())
    return path


def load(name):
    return CheckpointLoader.load_checkpoint(f'mmpsa://{name}', 'cpu')


def refusal(error, name):
    with pytest.raises(error) as caught:
        load(name)
    return str(caught.value)


class Model(BaseModule):
    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.layer = nn.Linear(2, 2)


def test_wherever_mmengine_takes_a_checkpoint(folder):
    weights = Model().state_dict()
    publish(folder, 'linear', dict(state_dict=weights, meta={}))
    loaded, initialised = (
        Model(),
        Model(dict(type='Pretrained', checkpoint='mmpsa://linear')),
    )
    load_checkpoint(loaded, 'mmpsa://linear', strict=True)
    initialised.init_weights()
    for model in (loaded, initialised):
        assert torch.equal(model.layer.weight, weights['layer.weight'])


def test_names(folder):
    old = publish(folder, 'model', 1)
    assert load('model') == load('model.pth') == 1
    new = publish(folder, 'model', 2)
    (folder / 'epoch_5.pth').touch()  # not published
    assert load(old.stem) == load(old.name) == 1
    assert load(new.stem) == 2
    message = refusal(FileNotFoundError, 'model')
    assert old.stem in message and new.stem in message
    assert 'names 2 of the 2' in message


def test_wrong_name(folder):
    path = publish(folder, 'td-hm_res50_coco-256x192_psa-p', 1)
    message = refusal(FileNotFoundError, 'td-hm_res50_coco-256x192_psa-s')
    assert f'Did you mean {path.stem}?' in message
    assert str(folder) in message
    assert 'None is similar' in refusal(FileNotFoundError, 'x')
    assert 'names 0 of the 1' in refusal(FileNotFoundError, f'../{path}')


def test_shortened_name(folder):
    """A few letters are too unlike the whole name for difflib."""
    names = [
        publish(folder, f'td-hm_res50_8xb64-210e_coco-256x192_{end}', 1).stem
        for end in ('psa-p', 'psa-s', 'psa-ch')
    ]
    publish(folder, 'fpn_r18', 1)
    message = refusal(FileNotFoundError, 'td-hm')
    assert f'Did you mean {", ".join(sorted(names))}?' in message


def test_damaged_file(folder):
    path = publish(folder, 'model', 1)
    path.write_bytes(path.read_bytes()[:-1])
    assert f'{path} is damaged' in refusal(RuntimeError, 'model')


@pytest.mark.skipif(
    release(torch.__version__) < (2, 6, 0),
    reason='torch.load is unsafe by default before 2.6',
)
@pytest.mark.parametrize('remote', [False, True])
def test_code_is_refused(folder, hub, monkeypatch, remote):
    class Attack:
        def __reduce__(self):
            return print, ('attacked',)

    path = publish(folder, 'model', Attack())
    with serve(folder) as url:
        if remote:
            monkeypatch.setenv('MMPSA_ZOO', url)
        with pytest.raises(pickle.UnpicklingError, match='Weights only'):
            load(path.stem)


@pytest.mark.skipif(
    Path(zoo.__file__) != REPO / 'mmpsa/zoo.py',
    reason='mmpsa is installed apart from its checkout',
)
def test_source_checkout():
    assert zoo.CHECKOUT == REPO / 'checkpoints'


def test_without_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv('MMPSA_ZOO', raising=False)
    monkeypatch.setattr(zoo, 'CHECKOUT', tmp_path)
    publish(tmp_path, 'model', 1)
    assert load('model') == 1
    monkeypatch.setattr(zoo, 'CHECKOUT', tmp_path / 'absent')
    message = refusal(FileNotFoundError, 'model')
    assert f'no folder {tmp_path}/absent (MMPSA_ZOO is not set)' in message
    assert 'Let MMPSA_ZOO name the folder checkpoints/ of a' in message


def test_what_mmengine_saves_is_loaded(folder):
    """The meta information of pose data has arrays, on any torch."""
    publish(folder, 'model', dict(sigmas=np.full(3, 0.5)))
    assert load('model')['sigmas'].tolist() == [0.5] * 3


def test_zoo_that_is_not_there(monkeypatch):
    monkeypatch.setenv('MMPSA_ZOO', 's3://bucket')
    message = refusal(FileNotFoundError, 'model')
    assert '(MMPSA_ZOO)' in message and 'http(s) URL' in message


def test_url(folder, hub, monkeypatch):
    path = publish(folder, 'model', 1)
    with serve(folder.parent) as url:
        monkeypatch.setenv('MMPSA_ZOO', f'{url}/zoo/')
        assert load(path.stem) == load(path.name) == 1
        assert 'cannot be listed' in refusal(ValueError, 'model')
        message = refusal(RuntimeError, 'other-01234567')
        assert f'{url}/zoo/other-01234567.pth' in message
        assert '404' in message
    # from the cache, without the server, but not if that was damaged
    assert load(path.stem) == 1
    (hub / path.name).write_bytes(b'')
    assert 'is damaged' in refusal(RuntimeError, path.stem)


def test_damaged_download_is_not_kept(folder, hub, monkeypatch):
    path = publish(folder, 'model', 1)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with serve(folder) as url:
        monkeypatch.setenv('MMPSA_ZOO', url)
        message = refusal(RuntimeError, path.stem)
        assert re.search('invalid hash value', message)
        assert not any(hub.iterdir())
        path.write_bytes(content)
        assert load(path.stem) == 1
