"""What users install: the package, mim's view of it, the set-up script."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mmpsa
from mmpsa.compatibility import OLDEST_TORCH, VERSIONS

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'requirements/install.py'


def requirements(name):
    lines = (ROOT / f'requirements/{name}.txt').read_text().splitlines()
    return [Requirement(line) for line in lines if line[:1] not in '#']


def mim_files(folder):
    """What mim needs, as relative paths, of a tree that holds it."""
    return {
        path.relative_to(folder)
        for name in ('configs', 'tools', 'model-index.yml')
        for path in (folder / name, *(folder / name).rglob('*'))
        if path.is_file() and path.suffix != '.pyc'
    }


class TestRequirements:
    lock = {pin.name: pin.specifier for pin in requirements('lock')}

    def test_lock_pins_exactly(self):
        assert {len(pin) for pin in self.lock.values()} == {1}
        assert {
            spec.operator for pin in self.lock.values() for spec in pin
        } == {'=='}

    @pytest.mark.parametrize('name', ['runtime', 'pose', 'seg', 'dev'])
    def test_lock_serves(self, name):
        for wanted in requirements(name):
            (pin,) = self.lock[wanted.name]
            assert pin.version in wanted.specifier, wanted

    def test_ranges_are_those_checked_at_import(self):
        ranges = {
            wanted.name.replace('mmsegmentation', 'mmseg'): wanted.specifier
            for name in ('runtime', 'pose', 'seg', 'pretrain')
            for wanted in requirements(name)
        }
        for name, (low, high) in VERSIONS.items():
            assert ranges[name] == Requirement(f'x>={low},<{high}').specifier
        assert ranges['torch'] == Requirement(f'x>={OLDEST_TORCH}').specifier


class TestPackage:
    def test_version(self):
        assert version('mmpsa') == mmpsa.__version__

    @pytest.fixture
    def tree(self, tmp_path):
        """A copy of the sources, where setup.py may leave its traces."""
        for name in ('configs', 'mmpsa', 'requirements', 'tools'):
            shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
        for name in (
            'MANIFEST.in',
            'model-index.yml',
            'setup.cfg',
            'setup.py',
        ):
            shutil.copy(ROOT / name, tmp_path)
        return tmp_path

    @staticmethod
    def setup_py(tree, *arguments):
        command = [sys.executable, 'setup.py', '-q', *arguments]
        subprocess.run(command, cwd=tree, check=True, capture_output=True)

    def test_build_holds_what_mim_needs(self, tree):
        stale = tree / 'built/mmpsa/.mim/configs/removed.py'
        stale.parent.mkdir(parents=True)
        stale.touch()
        self.setup_py(tree, 'build_py', '--build-lib', 'built')
        built = mim_files(tree / 'built/mmpsa/.mim')
        assert built == mim_files(ROOT)
        assert Path('tools/train.py') in built

    def test_source_archive_holds_what_mim_needs(self, tree):
        self.setup_py(tree, 'sdist', '--formats', 'gztar')
        (archive,) = tree.glob('dist/*.tar.gz')
        shutil.unpack_archive(archive, tree / 'unpacked')
        (unpacked,) = tree.glob('unpacked/*')
        assert mim_files(unpacked) == mim_files(ROOT)
        assert (unpacked / 'requirements/runtime.txt').exists()
        assert (unpacked / 'mmpsa/ops/csrc/cpp_passes.cpp').exists()

    def test_mim_finds_the_package(self):
        utils = pytest.importorskip('mim.utils')
        mim = Path(utils.get_installed_path('mmpsa'), '.mim')
        assert Path('tools/train.py') in mim_files(mim)
        assert mim_files(mim) == mim_files(ROOT)

    def test_mim_lists_and_searches_the_package(self):
        commands = pytest.importorskip('mim.commands')
        assert 'mmpsa' in [entry[0] for entry in commands.list_package()]
        commands.get_model_info('mmpsa')


class TestSetUpScript:
    @pytest.fixture
    def script(self, tmp_path):
        """The script in a tree of its own, where .venv is not there yet."""
        path = tmp_path / 'requirements/install.py'
        path.parent.mkdir()
        shutil.copy(SCRIPT, path)
        shutil.copy(ROOT / 'requirements/lock.txt', path.parent)
        spec = importlib.util.spec_from_file_location('install', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    @staticmethod
    def refusal(function):
        with pytest.raises(SystemExit) as stopped:
            function()
        message = stopped.value.code
        assert message.startswith('make env: ')
        assert len(message.splitlines()) == 1
        return message

    @pytest.mark.parametrize('found', ['3.7.16', '3.14.0'])
    def test_another_python(self, script, monkeypatch, found):
        monkeypatch.setattr(
            platform, 'python_version_tuple', lambda: found.split('.')
        )
        message = self.refusal(script.check_python)
        assert 'for CPython 3.11 on Linux x86_64' in message
        assert f'this is CPython {found.rpartition(".")[0]}' in message

    def test_python_without_venv(self, script, monkeypatch):
        monkeypatch.setattr(script, 'SUPPORTED', script.this_python())
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
        assert 'no module venv' in self.refusal(script.check_python)

    def test_no_compiler(self, script, monkeypatch):
        monkeypatch.delenv('CXX', raising=False)
        monkeypatch.setenv('PATH', os.devnull)
        assert "there is no 'c++'" in self.refusal(script.check_compiler)

    def test_compiler_that_fails(self, script, monkeypatch):
        monkeypatch.setenv('CXX', 'false')
        assert '`false -std=c++17' in self.refusal(script.check_compiler)

    def test_full_disk(self, script, monkeypatch):
        usage = shutil.disk_usage('/')._replace(free=int(1.5e9))
        monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
        assert '1.5 GB free' in self.refusal(script.check_disk)

    def test_failing_step(self, script, capfd):
        message = self.refusal(lambda: script.step('title', ['false']))
        assert 'failed at "title"' in message
        assert capfd.readouterr().out == '== title\n'

    def test_output_is_watched(self, script):
        seen = []
        assert script.run(['echo', 'a\nb'], seen.append) == 0
        assert seen == ['a\n', 'b\n']

    def test_half_made_environment_is_told_apart(self, script):
        assert not script.is_sound()
        pip = script.VENV / 'bin/pip'
        pip.parent.mkdir(parents=True)
        for home, sound in ((script.VENV, True), (Path('/moved'), False)):
            where = f'pip 24.3.1 from {home}/lib/python3.11/site-packages/pip'
            pip.write_text(f'#!/bin/sh\necho "{where} (python 3.11)"\n')
            pip.chmod(0o755)
            assert script.is_sound() is sound

    def test_half_installed_package_is_forgotten(self, script):
        site = script.VENV / 'lib/python3.11/site-packages'
        for name in ('whole', 'half'):
            (site / f'{name}-1.0.dist-info').mkdir(parents=True)
            (site / f'{name}-1.0.dist-info/METADATA').touch()
        (site / 'whole-1.0.dist-info/RECORD').touch()
        script.remove_half_installed()
        assert [path.name for path in site.iterdir()] == [
            'whole-1.0.dist-info'
        ]

    def test_finished_environment_is_left_alone(self, script, monkeypatch):
        for path in script.INPUTS:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        script.VENV.mkdir()
        calls = []
        for name in ('check_python', 'check_compiler', 'install'):
            monkeypatch.setattr(
                script, name, lambda name=name: calls.append(name)
            )
        script.main()
        assert calls == ['check_python', 'check_compiler', 'install']
        script.main()
        assert len(calls) == 3
        script.LOCK.write_text('torch==2.99')
        script.main()
        assert len(calls) == 6
