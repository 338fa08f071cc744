"""Versions, lazy registration, and checkpoints under weights_only."""

import pickle
import subprocess
import sys

import mmengine
import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.utils import digit_version

from mmpsa import compatibility


def python(code, hidden=()):
    """Run code in a fresh interpreter where some packages are absent."""
    prelude = (
        'import importlib.machinery as m, sys\n'
        'find = m.PathFinder.find_spec\n'
        'm.PathFinder.find_spec = lambda name, *args: '
        f'None if name in {hidden!r} else find(name, *args)\n'
    )
    return subprocess.run(
        [sys.executable, '-c', prelude + code],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize('name', compatibility.VERSIONS)
@pytest.mark.parametrize('side', [0, 1])
def test_refuses_untested_versions(name, side, monkeypatch):
    module = pytest.importorskip(name)
    low, high = compatibility.VERSIONS[name]
    assert digit_version(low) <= digit_version(module.__version__)
    compatibility.check_versions()
    monkeypatch.setattr(module, '__version__', ('0.0.1', high)[side])
    with pytest.raises(ImportError, match=f'{name} >={low}, <{high}; {name}'):
        compatibility.check_versions()


@pytest.mark.parametrize('version', ['1.13.1+cu117', '2.0.1'])
def test_refuses_old_torch(version, monkeypatch):
    monkeypatch.setattr(torch, '__version__', version)
    with pytest.raises(ImportError, match=r'torch >=2.1; torch .* installed'):
        compatibility.check_versions()


LOADED = (
    '\nprint([m for m in ("mmpose", "mmseg", "mmdet")'
    ' if f"{m}.models" in sys.modules])'
)


def test_import_loads_no_models():
    result = python('import mmpsa' + LOADED)
    assert result.stdout.splitlines()[-1:] == ['[]'], result.stderr


@pytest.mark.parametrize(
    'wanted, other', [('mmpose', 'mmseg'), ('mmseg', 'mmpose')]
)
@pytest.mark.parametrize('installed', ['both', 'one'])
def test_one_codebase_without_the_other(wanted, other, installed):
    lines = ['import mmpsa', f'import {wanted}.models']
    if installed == 'one':
        # Whichever comes first, ours are the ones in the registry.
        lines.reverse()
    code = '\n'.join(lines) + (
        f'\nfrom {wanted}.registry import MODELS\n'
        "MODELS.build(dict(type='ResNet', depth=18, plugins=[dict("
        "cfg=dict(type='PSA'), position='after_conv1')]))\n"
        f"print('{other}.models' in sys.modules)\n"
    )
    result = python(code, hidden=(other,) if installed == 'one' else ())
    assert result.stdout.splitlines()[-1:] == ['False'], result.stderr


def test_block_without_any_codebase():
    code = (
        'import mmpsa, torch\n'
        'print(mmpsa.PSA(4)(torch.ones(1, 4, 2, 2)).shape)'
    )
    result = python(code, hidden=('mmpose', 'mmseg', 'mmdet'))
    assert 'torch.Size([1, 4, 2, 2])' in result.stdout, result.stderr


def test_message_hub_loads_safely(tmp_path):
    hub = MessageHub.get_instance('mmpsa-test')
    for value in (0.5, np.float32(1), np.float64(2), torch.tensor(3.0)):
        hub.update_scalar('train/loss', value)
    hub.update_scalar('train/count', 3)
    hub.update_info('epoch', 7)
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(message_hub=hub.state_dict()), path)
    # as mmengine does: safe by default from torch 2.6 on
    loaded = torch.load(path)['message_hub']
    again = MessageHub.get_instance('mmpsa-test-again')
    again.load_state_dict(loaded)
    assert again.get_info('epoch') == 7
    loss = again.get_scalar('train/loss')
    assert loss.mean() == pytest.approx(6.5 / 4)
    assert loss.statistics('max') == 3


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6.0'),
    reason='torch.load is unsafe by default before 2.6',
)
@pytest.mark.parametrize(
    'owner, name',
    [(mmengine.logging.HistoryBuffer, '__init__'), (np.ndarray, 'tofile')],
)
def test_nothing_else_is_reached(owner, name, tmp_path):
    class Attack:
        def __reduce__(self):
            return getattr, (owner, name)

    path = tmp_path / 'attack.pth'
    torch.save(dict(x=Attack()), path)
    with pytest.raises(pickle.UnpicklingError, match='may only refer to'):
        torch.load(path)
