"""What users install: the package, mim's view of it, the set-up script."""

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch._dynamo  # noqa: F401 - before mim, see tests/test_mim.py
from helpers import REPO, load_script
from packaging.requirements import Requirement
from packaging.version import Version

import mmpsa
from mmpsa.compatibility import DISTRIBUTIONS, installed_version
from mmpsa.version import OLDEST_TORCH, VERSIONS

FOLDER = REPO / 'requirements'


def requirements(name):
    lines = (FOLDER / f'{name}.txt').read_text().splitlines()
    return [Requirement(line) for line in lines if line[:1] not in '#']


def locked(stack):
    """The pins of a stack by name, and how many hashes each has."""
    text = (FOLDER / f'stacks/{stack}.txt').read_text()
    entries = re.findall(r'(?m)^(\S+)==(\S+) \\\n((?: .*\n)+)', text)
    return {
        name: (pin, hashes.count('--hash=sha256:'))
        for name, pin, hashes in entries
    }


def mim_files(folder):
    """What mim needs, as relative paths, of a tree that holds it."""
    return {
        path.relative_to(folder)
        for name in ('configs', 'tools', 'model-index.yml')
        for path in (folder / name, *(folder / name).rglob('*'))
        if path.is_file() and path.suffix != '.pyc'
    }


def not_shipped(folder):
    """What maintainers run, of a tree that is meant for users."""
    paths = (path.relative_to(folder) for path in folder.rglob('*'))
    parts = {'benchmarks', 'dev', 'projects'}
    return [str(path) for path in paths if parts & set(path.parts)]


class TestRequirements:
    @pytest.mark.parametrize(
        'stack, least', [('openmmlab', 100), ('onedl', 100), ('docs', 10)]
    )
    def test_every_line_of_a_lock_is_pinned_and_hashed(self, stack, least):
        pins = locked(stack)
        text = (FOLDER / f'stacks/{stack}.txt').read_text()
        lines = [line for line in text.splitlines() if line[:1] not in '# ']
        assert len(pins) == len(lines) > least
        assert all(hashes for _, hashes in pins.values())

    @pytest.mark.parametrize(
        'stack, name',
        [
            *(('openmmlab', name) for name in ('openmmlab', 'pose', 'seg')),
            ('openmmlab', 'pretrain'),
            ('onedl', 'onedl'),
            *((stack, 'runtime') for stack in ('openmmlab', 'onedl')),
            *((stack, 'dev') for stack in ('openmmlab', 'onedl')),
            *((stack, 'timm') for stack in ('openmmlab', 'onedl')),
        ],
    )
    def test_lock_serves(self, stack, name):
        pins = locked(stack)
        for wanted in requirements(name):
            assert pins[wanted.name][0] in wanted.specifier, wanted

    def test_dropped_packages_are_in_no_lock(self):
        for stack in ('openmmlab', 'onedl'):
            text = (FOLDER / f'stacks/{stack}.overrides').read_text()
            dropped = set(re.findall(r'(?m)^([\w-]+);', text))
            assert 'chumpy' in dropped
            assert not dropped & set(locked(stack))

    @pytest.mark.parametrize(
        'name', ['openmmlab', 'onedl', 'pose', 'seg', 'pretrain']
    )
    def test_ranges_are_within_those_of_the_import(self, name):
        packages = {
            distribution: package
            for package, names in DISTRIBUTIONS.items()
            for distribution in names
        }
        for wanted in requirements(name):
            package = packages.get(wanted.name, wanted.name)
            if package in VERSIONS:
                lowest, highest = map(Version, VERSIONS[package])
                low, high = sorted(
                    Version(s.version) for s in wanted.specifier
                )
                assert lowest <= low < high <= highest, wanted

    def test_runtime_names_no_distribution_that_has_a_fork(self):
        names = {wanted.name for wanted in requirements('runtime')}
        assert names == {'torch'}
        (torch,) = requirements('runtime')
        assert str(torch.specifier) == f'>={OLDEST_TORCH}'


class TestPackage:
    def test_version(self):
        assert version('mmpsa') == mmpsa.__version__

    @pytest.mark.parametrize(
        'name, pattern',
        [
            ('CHANGELOG.md', r'## (\S+)'),
            ('CITATION.cff', r'version: (\S+)'),
        ],
    )
    def test_version_in(self, name, pattern):
        text = (REPO / name).read_text()
        found = re.search(rf'(?m)^{pattern}', text).group(1)
        assert found == mmpsa.__version__

    @pytest.fixture
    def tree(self, tmp_path):
        """A copy of the sources, where setup.py may leave its traces."""
        for name in (
            'benchmarks',
            'configs',
            'dev',
            'mmpsa',
            'projects',
            'requirements',
            'tools',
        ):
            shutil.copytree(REPO / name, tmp_path / name, symlinks=True)
        for name in (
            'MANIFEST.in',
            'README.md',
            'model-index.yml',
            'pyproject.toml',
            'setup.cfg',
            'setup.py',
        ):
            shutil.copy(REPO / name, tmp_path)
        return tmp_path

    def test_wheel_holds_the_extension(self, tree):
        """Also where the build is isolated, as pip isolates it."""
        site = Path(sysconfig.get_path('purelib'))
        tools = tree / 'build-tools'
        tools.mkdir()
        for name in ('*setuptools*', '_distutils*', 'pkg_res*', 'wheel*'):
            for path in site.glob(name):
                (tools / path.name).symlink_to(path)
        version = '{}.{}'.format(*sys.version_info)
        for tag in (version, sys.implementation.cache_tag):
            machine = sysconfig.get_platform()
            stale = tree / f'build/lib.{machine}-{tag}/mmpsa/stale.py'
            stale.parent.mkdir(parents=True)
            stale.touch()
        # It links an empty extension: the real one takes half a minute.
        compiler = tree / 'c++'
        compiler.write_text(
            f'#!{sys.executable}\n'
            'import subprocess, sys\n'
            'args = sys.argv[1:]\n'
            "if '-c' in args:\n"
            "    args = '-x c++ -c /dev/null -o'.split() + ["
            "args[args.index('-o') + 1]]\n"
            "sys.exit(subprocess.call(['c++', *args]))\n"
        )
        compiler.chmod(0o755)
        command = 'import build_backend as b; b.build_wheel("dist")'
        subprocess.run(
            [sys.executable, '-S', '-c', command],
            cwd=tree,
            env=dict(
                os.environ,
                PYTHONPATH=f'{tools}:requirements',
                CC=str(compiler),
                CXX=str(compiler),
            ),
            check=True,
            capture_output=True,
        )
        (wheel,) = tree.glob('dist/*.whl')
        names = zipfile.ZipFile(wheel).namelist()
        assert 'mmpsa/stale.py' not in names
        built = [
            name
            for name in names
            if name.startswith('mmpsa/ops/_') and name.endswith('.so')
        ]
        assert len(built) == 1

    @pytest.mark.parametrize('compiler', ['false', '/nowhere/c++'])
    def test_builds_without_a_compiler(self, tree, compiler):
        subprocess.run(
            [sys.executable, 'setup.py', '-q', 'build'],
            cwd=tree,
            env=dict(os.environ, CC=compiler, CXX=compiler),
            check=True,
            capture_output=True,
        )
        (package,) = tree.glob('build/lib*/mmpsa')
        assert (package / 'psa.py').exists()
        assert not [*package.rglob('*.so')]

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
        assert built == mim_files(REPO)
        assert Path('tools/train.py') in built
        for name in ('py.typed', 'compare/page.md'):
            assert (tree / 'built/mmpsa' / name).exists()
        assert not not_shipped(tree / 'built')

    def test_source_archive_holds_what_mim_needs(self, tree):
        self.setup_py(tree, 'sdist', '--formats', 'gztar')
        (archive,) = tree.glob('dist/*.tar.gz')
        shutil.unpack_archive(archive, tree / 'unpacked')
        (unpacked,) = tree.glob('unpacked/*')
        assert mim_files(unpacked) == mim_files(REPO)
        for name in ('pyproject.toml', 'requirements/build_backend.py'):
            assert (unpacked / name).exists()
        assert (unpacked / 'requirements/runtime.txt').exists()
        assert (unpacked / 'mmpsa/ops/csrc/cpu.cpp').exists()
        for name in ('py.typed', 'compare/page.md'):
            assert (unpacked / 'mmpsa' / name).exists()
        assert not not_shipped(unpacked)

    def test_mim_finds_the_package(self):
        importlib.import_module('mim_or_skip')
        utils = importlib.import_module('mim.utils')
        mim = Path(utils.get_installed_path('mmpsa'), '.mim')
        assert Path('tools/train.py') in mim_files(mim)
        assert mim_files(mim) == mim_files(REPO)

    def test_mim_lists_the_package(self):
        importlib.import_module('mim_or_skip')
        commands = importlib.import_module('mim.commands')
        assert 'mmpsa' in [entry[0] for entry in commands.list_package()]


class TestBuildMmcv:
    script = load_script('requirements/build_mmcv.py')

    def test_a_wheel_serves_one_torch(self):
        folders = {
            self.script.cache_folder(SimpleNamespace(__version__=torch), cuda)
            for torch in ('2.11.0+cu130', '2.11.0+cpu', '2.15.0+cu130')
            for cuda in (True, False)
        }
        assert len(folders) == 6

    def test_combined_sources_are_the_same_sources(self, tmp_path):
        host = tmp_path / 'mmcv/ops/csrc/pytorch'
        (host / 'cpu').mkdir(parents=True)
        (host / 'cuda').mkdir()
        for name in ('nms', 'psamask', 'cpu/nms', 'cpu/psamask', 'cuda/x'):
            (host / f'{name}.cpp').write_text(f'// {name}')
        (tmp_path / 'setup.py').write_text("['-Wall', '-std=c++17']")
        self.script.combine(tmp_path)
        assert (tmp_path / 'setup.py').read_text() == "['-Wall', ]"
        left = {
            str(path.relative_to(host).with_suffix(''))
            for path in host.rglob('*.cpp')
        }
        assert left == {'combined', 'cpu/combined', 'cpu/psamask', 'cuda/x'}
        for folder, names in (('.', ['nms', 'psamask']), ('cpu', ['nms'])):
            lines = (host / folder / 'combined.cpp').read_text().splitlines()
            assert lines == [f'#include "{name}.inc"' for name in names]
            for name in names:
                assert (host / folder / f'{name}.inc').exists()

    @pytest.mark.parametrize('given', ['mmcv', 'mmcv>=2.1', 'mmcv==2.1.*'])
    def test_a_requirement_that_is_no_release(self, given, monkeypatch):
        monkeypatch.setattr(sys, 'argv', ['build_mmcv.py', given])
        with pytest.raises(SystemExit, match=r"like 'mmcv==2.1.0', got"):
            self.script.main()

    def test_missing_tools_are_named_with_the_remedy(self, monkeypatch):
        monkeypatch.setattr(sys, 'argv', ['build_mmcv.py'])
        monkeypatch.setattr(
            self.script,
            'find_spec',
            lambda name: None if name == 'ninja' else name,
        )
        with pytest.raises(SystemExit, match='lacks ninja; .*pip install'):
            self.script.main()


class TestSetUpScript:
    @pytest.fixture
    def script(self, tmp_path):
        """The script in a tree of its own, where no environment is yet."""
        shutil.copytree(FOLDER, tmp_path / 'requirements')
        return load_script(tmp_path / 'requirements/install.py')

    @staticmethod
    def refusal(function, *arguments):
        with pytest.raises(SystemExit) as stopped:
            function(*arguments)
        message = stopped.value.code
        assert message.startswith('requirements/install.py: ')
        assert len(message.splitlines()) == 1
        return message

    def test_old_python(self, script, monkeypatch):
        monkeypatch.setattr(sys, 'version_info', (3, 7, 16))
        assert 'takes Python 3.8 or newer' in self.refusal(script.main)

    @pytest.mark.parametrize(
        'system, libc, named',
        [
            ('Darwin', '', 'Darwin x86_64'),
            ('Windows', '', 'Windows x86_64'),
            ('Linux', '', 'Linux x86_64 with another C library'),
        ],
    )
    def test_another_machine(self, script, monkeypatch, system, libc, named):
        monkeypatch.setattr(platform, 'machine', lambda: 'x86_64')
        monkeypatch.setattr(platform, 'system', lambda: system)
        monkeypatch.setattr(platform, 'libc_ver', lambda: (libc, ''))
        message = self.refusal(script.check_machine)
        assert 'for Linux x86_64 with glibc' in message
        assert named in message

    def test_unknown_stack(self, script, monkeypatch):
        monkeypatch.setattr(sys, 'argv', ['install.py', 'onld'])
        message = self.refusal(script.main)
        assert "one of openmmlab, onedl, docs, got 'onld'" in message

    def test_no_compiler(self, script, monkeypatch):
        monkeypatch.delenv('CXX', raising=False)
        monkeypatch.setenv('PATH', os.devnull)
        message = self.refusal(script.check_compiler, sys.executable)
        assert "there is no 'c++'" in message

    def test_compiler_that_fails(self, script, monkeypatch):
        monkeypatch.setenv('CXX', 'false')
        message = self.refusal(script.check_compiler, sys.executable)
        assert '`false -std=c++17' in message

    def test_full_disk(self, script, monkeypatch):
        usage = shutil.disk_usage('/')._replace(free=int(0.5e9))
        monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
        assert '0.5 GB free' in self.refusal(script.check_disk)
        message = self.refusal(script.step, 'title', ['false'])
        assert 'the disk is full' in message

    def test_failing_step(self, script, capfd):
        message = self.refusal(script.step, 'title', ['false'], 'do this')
        assert 'failed at "title": do this' in message
        assert capfd.readouterr().out == '== title\n'

    def test_uv_that_is_old_or_absent_is_installed(self, script, monkeypatch):
        ran = []
        monkeypatch.setattr(
            script, 'step', lambda title, *rest: ran.append(title)
        )
        answers = {'uv': 'uv 0.5.1'}
        monkeypatch.setattr(
            subprocess,
            'check_output',
            lambda command, **_: answers.get(command[0], 'uv 0.0.0'),
        )
        ours = str(script.UV_VENV / 'bin/uv')
        assert script.find_uv() == ours
        assert ran == ['a venv for uv', 'uv']
        answers['uv'] = 'uv 0.9.0 (x86_64)'
        assert script.find_uv() == 'uv'
        answers = {ours: 'uv 0.13.9'}
        assert script.find_uv() == ours
        assert len(ran) == 2

    @pytest.mark.parametrize('stack', ['openmmlab', 'onedl'])
    def test_mmcv_is_installed_apart(self, script, stack):
        lock = (FOLDER / f'stacks/{stack}.txt').read_text()
        name = script.STACKS[stack].mmcv
        rest, mmcv = script.without_mmcv(lock, name)
        pin, hashes = locked(stack)[name]
        assert re.fullmatch(
            rf'{name}=={pin}( --hash=sha256:[0-9a-f]{{64}}){{{hashes}}}', mmcv
        )
        names = re.findall(r'(?m)^([\w-]+)==', rest)
        assert set(names) == set(locked(stack)) - {name}

    def test_what_is_done_is_not_done_again(self, script, tmp_path):
        stamp, source = tmp_path / 'stamp', tmp_path / 'source'
        source.write_text('a')
        calls = []

        def once(stamp, fails=False):
            def action():
                calls.append(stamp)
                if fails:
                    raise KeyboardInterrupt

            script.once(stamp, [source], action)

        with pytest.raises(KeyboardInterrupt):
            once(stamp, fails=True)
        once(stamp)
        once(stamp)
        assert len(calls) == 2
        source.write_text('b')
        once(stamp)
        assert len(calls) == 3
        moved = stamp.rename(tmp_path / 'moved')
        once(moved)
        assert len(calls) == 4

    def test_environment_follows_its_inputs(self, script, monkeypatch):
        seen = {}
        monkeypatch.setattr(
            script,
            'once',
            lambda stamp, inputs, action: seen.update(
                {stamp: {str(p.relative_to(script.ROOT)) for p in inputs}}
            ),
        )
        for name in ('mmpsa/ops', 'configs', 'tools'):
            shutil.copytree(REPO / name, script.ROOT / name)
        script.install('onedl')
        packages, mmpsa = seen.values()
        assert 'requirements/stacks/onedl.txt' in packages
        assert 'requirements/build_mmcv.py' in packages
        assert {'setup.py', 'mmpsa/ops/__init__.py'} < mmpsa
        assert not [name for name in mmpsa if name.endswith('.pyc')]
        seen.clear()
        script.install('docs')
        (packages,) = seen.values()
        assert 'requirements/stacks/docs.txt' in packages


class TestVersionsPage:
    script = load_script('docs/versions.py')
    page = f'# Page\n{script.START}| a | b |\n|---|---|\n{script.END}end\n'

    def test_a_row_is_replaced_by_that_of_the_same_versions(self):
        page = self.page
        for row in (['2', 'x', '1 failed'], ['1', 'x', 'y'], ['2', 'x', 'z']):
            page = self.script.with_row(page, row)
        assert page == self.page.replace(
            '|---|---|\n', '|---|---|\n| 1 | x | y |\n| 2 | x | z |\n'
        )

    @pytest.mark.parametrize(
        'lines, status, result',
        [
            (
                ['== 3 passed, 1 skipped, 9 warnings in 99.1s (0:01:39) =='],
                0,
                '3 passed, 1 skipped',
            ),
            (['1 failed, 3 passed in 2.15s'], 1, '1 failed, 3 passed'),
            (
                ['3 passed in 2.1s', '2 passed in 1.1s'],
                0,
                '3 passed; 2 passed',
            ),
            (['no such file'], 2, 'exit status 2'),
            (['3 passed in 2.1s', 'lost'], 3, '3 passed; exit status 3'),
        ],
    )
    def test_result_of_a_run(self, lines, status, result):
        code = (
            f'import sys; print({chr(10).join(lines)!r}); sys.exit({status})'
        )
        assert self.script.run([sys.executable, '-c', code]) == result

    def test_versions_of_this_environment(self):
        python, torch, mmengine, *_ = self.script.versions(sys.prefix)
        assert python == platform.python_version()
        assert torch == version('torch')
        assert mmengine.endswith(f'mmengine {installed_version("mmengine")}')

    def test_the_page_has_its_table(self):
        page = self.script.PAGE.read_text()
        assert self.script.with_row(page, ['a', 'b']).count('| a | b |') == 1
