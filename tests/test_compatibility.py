"""Versions, lazy registration, and checkpoints under weights_only."""

import pickle
import re
import subprocess
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from helpers import torch_load
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import MessageHub

from mmpsa import compatibility
from mmpsa.compatibility import release
from mmpsa.ops import availability
from mmpsa.version import CODEBASES, VERSIONS


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


def test_versions_are_read_without_importing():
    code = (
        'import sys\n'
        'import mmpsa.version\n'
        'from mmpsa import compatibility as c\n'
        'for name in mmpsa.version.VERSIONS:\n'
        '    sys.modules.pop(name, None)\n'
        '    print(name, c.installed_version(name), name in sys.modules)'
    )
    result = python(code)
    lines = [
        f'{name} {import_module(name).__version__} False'
        for name in VERSIONS
        if find_spec(name)
    ]
    assert [
        line for line in result.stdout.splitlines() if 'None' not in line
    ] == lines, result.stderr


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package that is found in the place of an installed one."""

    def make(name, version):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / name).mkdir()
        (tmp_path / f'{name}/__init__.py').write_text('raise RuntimeError')
        (tmp_path / f'{name}/version.py').write_text(
            f'def version():\n    return {version!r}\n'
            '__version__ = version()\n'
        )

    return make


def test_forks_look_their_version_up(package):
    package('mmseg', '1.4.2')
    assert compatibility.installed_version('mmseg') == '1.4.2'


def test_a_folder_is_no_package(tmp_path, monkeypatch):
    (tmp_path / 'mmnothing').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert compatibility.installed_version('mmnothing') is None


def test_installed_versions_are_tested_ones(recwarn):
    compatibility.check_versions()
    assert not [str(w.message) for w in recwarn]


@pytest.mark.parametrize('name', VERSIONS)
def test_untested_is_a_warning(name, package):
    low, high = VERSIONS[name]
    package(name, high)
    with pytest.warns(
        UserWarning, match=f'{name} >={low}, <{high}, and {name} {high} is'
    ):
        compatibility.check_versions()


@pytest.mark.parametrize('name', ['mmengine', 'mmcv'])
def test_what_cannot_work_is_refused_with_the_remedy(name, package):
    package(name, '0.0.1')
    low = VERSIONS[name][0]
    with pytest.raises(
        ImportError,
        match=f"{name} >={low} is needed.* 0.0.1 .*; pip install '.*>={low}'",
    ):
        compatibility.check_versions()


@pytest.mark.parametrize('name', CODEBASES)
def test_an_old_codebase_is_left_alone(name, package):
    package(name, '0.30.0')
    with pytest.warns(UserWarning, match=f"no plugins= to {name}: .*'.*>="):
        compatibility.check_versions()
    assert name not in compatibility.installed_codebases()


def test_two_distributions_of_one_package(monkeypatch):
    monkeypatch.setattr(compatibility, 'is_distribution', lambda name: True)
    with pytest.warns(
        UserWarning, match='pip uninstall mmengine mmengine-lite onedl-mmen'
    ):
        compatibility.check_versions()


@pytest.mark.parametrize('installed', ['upstream', 'fork', 'none'])
def test_configs_of_forks_are_found(installed, monkeypatch):
    name = dict(upstream='mmsegmentation', fork='onedl-mmsegmentation')
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setattr(
        compatibility,
        'is_distribution',
        lambda distribution: distribution == name.get(installed),
    )
    compatibility.find_configs_of_forks()
    assert MODULE2PACKAGE['mmseg'] == name.get(installed, 'mmsegmentation')


@pytest.mark.parametrize(
    'codebase, limit',
    [('mmseg', 'MMCV_MAX'), ('mmdet', 'mmcv_maximum_version')],
)
def test_a_codebase_that_refuses_mmcv_22(
    codebase, limit, package, tmp_path, monkeypatch
):
    """The commands of the page make it accept that mmcv."""
    text = Path(find_spec(codebase).origin).read_text()
    if limit not in text:
        pytest.skip('the fork has no such limit')
    package('mmcv', '2.2.0')
    package(codebase, '0')
    init = tmp_path / codebase / '__init__.py'
    init.write_text(text)
    with pytest.warns(UserWarning) as warned:
        compatibility.warn_of_mmcv(codebase)
    (message,) = [str(w.message) for w in warned]
    assert f'{codebase} will not import: it refuses mmcv 2.2.0' in message
    assert 'docs/versions.md how to raise the limit' in message
    page = Path(__file__).parents[1] / 'docs/versions.md'
    (command,) = re.findall(
        rf'^sed -i .* {codebase}/.*', page.read_text(), re.M
    )
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert init.read_text() == text.replace(
        f"{limit} = '2.2.0'",
        f"{limit} = '{compatibility.VERSIONS['mmcv'][1]}'",
    )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compatibility.warn_of_mmcv(codebase)


@pytest.mark.parametrize('version', ['1.13.1+cu117', '2.0.1'])
def test_refuses_old_torch(version, monkeypatch):
    monkeypatch.setattr(torch, '__version__', version)
    with pytest.raises(ImportError, match=r"pip install 'torch>=2.1'"):
        compatibility.check_versions()


@pytest.mark.parametrize(
    'version, numbers',
    [
        ('2.6.0', (2, 6, 0)),
        ('2.6.0a0+ecf3bae40a.nv25.01', (2, 6, 0)),
        ('2.12.1.dev20260101+cu130', (2, 12, 1)),
        ('0.11', (0, 11, 0)),
        ('2.1.0rc1', (2, 1, 0)),
        ('1.2.3.4', (1, 2, 3)),
    ],
)
def test_release(version, numbers):
    assert compatibility.release(version) == numbers


def test_snapshots_count_as_their_release(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.1.0a0+32f93b1')
    compatibility.check_versions()
    monkeypatch.setattr(torch, '__version__', '2.0.0a0+1767026')
    with pytest.raises(ImportError, match='torch 2.0.0a0'):
        compatibility.check_versions()
    for name, (low, high) in VERSIONS.items():
        assert not compatibility.is_too_old(name, f'{low}rc1')
        assert compatibility.is_too_new(name, f'{high}rc1')


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'add_safe_globals'),
    reason='before torch 2.4, no class can be allowed',
)
def test_torch_of_an_nvidia_container():
    """It has what the release has: Triton, a safe ``torch.load``."""
    result = python(
        'import torch\n'
        "torch.__version__ = '2.4.0a0+3bcc3cddb5.nv24.07'\n"
        'import io, mmpsa\n'
        'from mmpsa.ops import availability\n'
        'from mmengine.logging import HistoryBuffer\n'
        'file = io.BytesIO()\n'
        'torch.save(HistoryBuffer([1.0], [1]), file)\n'
        'file.seek(0)\n'
        'history = torch.load(file, weights_only=True)\n'
        'print(availability.MISSING["triton"], history.mean())\n'
    )
    assert result.stdout.splitlines()[-1:] == [
        f'{availability.MISSING["triton"]} 1.0'
    ], result.stderr


@pytest.mark.parametrize('name', ['torch', 'mmengine'])
def test_what_is_missing_is_named(name):
    result = python('import mmpsa', hidden=(name,))
    error = result.stderr.splitlines()[-1]
    assert error.startswith(
        f'ImportError: mmpsa needs torch and mmengine, and there is no {name}'
    )
    assert 'pip install' in error


def test_block_without_mmcv():
    code = (
        'import mmpsa, torch, sys\n'
        'plugin = dict(cfg=dict(type="PSA"), position="after_stage")\n'
        'class Backbone(torch.nn.Module):\n'
        '    def __init__(self):\n'
        '        super().__init__()\n'
        '        self.layer1 = torch.nn.Conv2d(3, 8, 1)\n'
        '        self.layer2 = torch.nn.Conv2d(8, 8, 1)\n'
        '    def forward(self, x):\n'
        '        return self.layer2(self.layer1(x))\n'
        'backbone = Backbone()\n'
        'mmpsa.insert_plugins(backbone, [plugin])\n'
        'print(backbone(torch.ones(1, 3, 2, 2)).shape)\n'
        'print([*dict(backbone.named_modules())])\n'
    )
    result = python(code, hidden=('mmcv',))
    assert 'torch.Size([1, 8, 2, 2])' in result.stdout, result.stderr
    assert "'after_module.layer1.psa', 'after_module" in result.stdout
    for name in compatibility.installed_codebases():
        assert f'{name} will not import: there is no mmcv; ' in result.stderr


def test_import_loads_nothing_slow():
    slow = (*CODEBASES, 'triton', 'torch._dynamo', 'matplotlib')
    result = python(
        'import mmpsa\n'
        f'print([name for name in {slow} if name in sys.modules])'
    )
    assert result.stdout.splitlines()[-1:] == ['[]'], result.stderr


@pytest.mark.slow
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
    result = python(code, hidden=CODEBASES)
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
    loaded = torch_load(path)['message_hub']
    again = MessageHub.get_instance('mmpsa-test-again')
    again.load_state_dict(loaded)
    assert again.get_info('epoch') == 7
    loss = again.get_scalar('train/loss')
    assert loss.mean() == pytest.approx(6.5 / 4)
    assert loss.statistics('max') == 3


@pytest.mark.skipif(
    release(torch.__version__) < (2, 6, 0),
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
        torch_load(path)
