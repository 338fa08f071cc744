"""``python -m mmpsa``: versions, backends, and what is wrong."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import mmcv
import pytest
import torch

from mmpsa import PSA, __main__, __version__
from mmpsa.compatibility import installed_codebases, installed_version
from mmpsa.ops import backends


def run(folder, **stubs):
    """Run it with stub packages before the installed ones.

    The codebases are stubs anyway: importing their models takes long.
    """
    codebases = {
        name: f'__version__ = {installed_version(name)!r}'
        for name in installed_codebases()
    }
    for name, code in {**codebases, **stubs}.items():
        (folder / name).mkdir()
        (folder / name / '__init__.py').write_text(code)
        (folder / name / 'version.py').write_text(code)
        (folder / name / 'models.py').touch()
    root = Path(__main__.__file__).parents[1]
    env = dict(os.environ, PYTHONPATH=f'{folder}{os.pathsep}{root}')
    env.pop('TRITON_INTERPRET', None)  # slow
    env['OMP_NUM_THREADS'] = '1'
    return subprocess.run(
        [sys.executable, '-m', 'mmpsa'],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def lines_of(result):
    lines = [line.split(':', 1) for line in result.stdout.splitlines()]
    return {name: text.strip() for name, text in lines}


def test_says_what_is_installed_and_right(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = lines_of(result)
    assert lines['mmpsa'] == __version__
    assert lines['Python'].startswith(sys.version.split()[0])
    assert lines['torch'] == torch.__version__
    assert lines['mmcv'] == mmcv.__version__
    for name in installed_codebases():
        assert lines[name] == installed_version(name)
    assert '48 of 48 cases right on cpu' in lines['backend torch']
    for name, reason in backends().items():
        if name != 'triton':  # it is there by its interpreter, in here
            text = lines[f'backend {name}']
            assert (reason is None) == ('not available' not in text)


@pytest.mark.parametrize(
    'name, version, verdict',
    [
        ('mmdet', '3.3.0', ''),
        ('mmdet', '99.0', ', not tested; tested: >=.*, <.*'),
        ('mmpose', '0.29.0', ', too old: >=.* is needed'),
        ('torch', '99.0', ''),
    ],
)
def test_says_what_is_not_tested(name, version, verdict, monkeypatch, capsys):
    monkeypatch.setattr(__main__, 'PACKAGES', (name,))
    monkeypatch.setattr(__main__, 'CODEBASES', ())
    monkeypatch.setattr(import_module(name), '__version__', version)
    assert __main__.show_versions()
    shown = dict(
        line.split(':', 1) for line in capsys.readouterr().out.splitlines()
    )
    assert re.fullmatch(re.escape(version) + verdict, shown[name].strip())


FAULTS = {
    'output': lambda y, x: 2 * y,
    'gradient': lambda y, x: y + x - x.detach(),
    'nan': lambda y, x: y + float('nan'),
    'error': lambda y, x: y[:, :, 99],
}


@pytest.mark.parametrize('fault', FAULTS)
def test_tells_a_wrong_backend(fault, monkeypatch, capsys):
    monkeypatch.setattr(__main__, 'SHAPES', [(2, 8, 3, 2)])
    monkeypatch.setattr('mmpsa.ops.backends', lambda: dict(torch=None))
    assert __main__.show_backends()
    forward = PSA.forward

    def wrong(self, x):
        y = forward(self, x)
        is_it = self.backend == 'torch' and self.layout == 'sequential'
        return FAULTS[fault](y, x) if is_it else y

    monkeypatch.setattr(PSA, 'forward', wrong)
    assert not __main__.show_backends()
    printed = capsys.readouterr().out
    assert '8 of 12 cases right on cpu' in printed
    assert printed.count('wrong: ') == 4
    assert 'wrong: official sequential (2, 8, 3, 2) bfloat16 on' in printed


@pytest.mark.parametrize(
    'stubs, said',
    [
        (
            dict(mmcv="__version__ = '2.0.0'"),
            'mmpsa cannot work: mmcv >=2.1.0 is needed, and mmcv 2.0.0 is',
        ),
        (dict(mmcv='raise ModuleNotFoundError("no mmcv")'), 'no mmcv'),
        (dict(mmengine='raise ImportError("cut off")'), 'cut off'),
        (dict(torch='raise OSError("no libtorch")'), 'no libtorch'),
        (dict(mmseg='assert False, "mmcv is incompatible"'), 'incompatible'),
    ],
)
def test_answers_where_the_import_fails(stubs, said, tmp_path):
    result = run(tmp_path, **stubs)
    assert result.returncode == 1, result.stdout + result.stderr
    assert said in result.stdout
    assert lines_of(result)['Python'].startswith(sys.version.split()[0])
    assert 'Traceback' not in result.stdout + result.stderr


def test_another_package_run_by_python_m_gets_all_of_mmpsa(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/__init__.py').write_text('import mmpsa')
    (tmp_path / 'mine/__main__.py').write_text(
        'import mmpsa; print(mmpsa.PSA.__name__)'
    )
    root = Path(__main__.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, '-m', 'mine'],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(root)),
        capture_output=True,
        text=True,
    )
    assert result.stdout == 'PolarizedSelfAttention\n', result.stderr
