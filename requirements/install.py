"""Makes the environment of a stack, as pinned in ``requirements/stacks``.

``make env`` runs it, by any Python from 3.8 on with the standard library
alone; ``make lock`` pins anew. uv does most of the work. This file adds what
uv cannot do: it builds mmcv with its operators, and installs mmpsa where mim
finds it. Every failure ends with one clear line.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / 'requirements/stacks'
BUILD = LOCKS / 'build-constraints.txt'
BUILD_MMCV = 'requirements/build_mmcv.py'
# What is installed where there is no uv, by this Python's pip.
UV = 'uv==0.13.9'
UV_VENV = ROOT / '.venv-uv'
OLDEST_UV = (0, 9)  # has `extra-build-dependencies`
# Measured: 5.3 GB of packages, hard links to uv's cache on the same disk.
NEEDED_GB = 7

Stack = namedtuple('Stack', 'python venv mmcv install sources')
STACKS = {
    'openmmlab': Stack(
        '3.11',
        '.venv',
        'mmcv',
        # mim finds no editable installs but those that setuptools makes.
        '-W ignore setup.py -q develop --no-deps',
        ('mmpsa/version.py', 'mmpsa/ops/csrc'),
    ),
    'onedl': Stack(
        '3.12',
        '.venv-onedl',
        'onedl-mmcv',
        '-m pip install -q --no-deps --force-reinstall .',
        ('mmpsa', 'configs', 'tools', 'model-index.yml'),
    ),
    # What builds the site; it reads mmpsa's sources and does not run them.
    'docs': Stack('3.11', '.venv-docs', None, None, ()),
}

ENVIRONMENT = dict(
    os.environ,
    # Operators for CUDA take a CUDA toolkit of torch's own version, and
    # nothing here calls them.
    FORCE_CUDA='0',
    CUDA_VISIBLE_DEVICES='',
    PIP_DISABLE_PIP_VERSION_CHECK='1',
)


def stop(message):
    sys.exit(f'requirements/install.py: {message}')


def run(command):
    """Runs a command and returns its exit code.

    The command leads a process group of its own, so that an interruption
    ends all of it, compilers too.
    """
    process = subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, start_new_session=True
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise


def free_gb():
    return shutil.disk_usage(ROOT).free / 1e9


def step(title, command, hint='see the messages above'):
    print(f'== {title}', flush=True)
    if run(command):
        if free_gb() < 1:
            hint = f'the disk is full, or nearly: {free_gb():.1f} GB are free'
        stop(f'failed at "{title}": {hint}')


def check_machine():
    machine = f'{platform.system()} {platform.machine()}'
    libc = platform.libc_ver()[0] or 'another C library'
    if (machine, libc) != ('Linux x86_64', 'glibc'):
        stop(
            'the pinned versions are for Linux x86_64 with glibc, this is '
            f'{machine} with {libc}; docs/versions.md has what to install '
            'elsewhere'
        )


def check_disk():
    if free_gb() < NEEDED_GB:
        stop(
            f'the disk of {ROOT} has {free_gb():.1f} GB free, the environment '
            f'needs about {NEEDED_GB} GB'
        )


def check_compiler(python):
    compiler = os.environ.get('CXX', 'c++')
    code = 'import sysconfig; print(sysconfig.get_path("include"))'
    headers = subprocess.check_output([python, '-c', code], text=True).strip()
    probe = f'{compiler} -std=c++17 -fsyntax-only -I {headers} -x c++ -'
    source = '#include <optional>\n#include <Python.h>\n'
    try:
        done = subprocess.run(
            shlex.split(probe), input=source, capture_output=True, text=True
        )
    except OSError:
        stop(
            f'mmcv needs a C++ compiler and there is no {compiler!r} (on '
            'Debian and Ubuntu: apt install g++; elsewhere, set CXX)'
        )
    if done.returncode:
        error = done.stderr.partition('\n')[0]
        stop(
            f'mmcv needs C++17 and the headers of Python, `{probe}` fails (on '
            f'Debian and Ubuntu: apt install g++ python3-dev): {error}'
        )


def find_uv():
    """uv, from the PATH or installed for this checkout."""
    for uv in ('uv', str(UV_VENV / 'bin/uv')):
        try:
            shown = subprocess.check_output([uv, '--version'], text=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        if tuple(map(int, re.findall(r'\d+', shown)[:2])) >= OLDEST_UV:
            return uv
    hint = (
        f'install uv yourself, or give {sys.executable} its modules venv and '
        'ensurepip (on Debian and Ubuntu: apt install python3-venv)'
    )
    venv = [sys.executable, '-m', 'venv', '--clear', UV_VENV]
    step('a venv for uv', venv, hint)
    step('uv', [UV_VENV / 'bin/python', '-m', 'pip', 'install', '-q', UV])
    return str(UV_VENV / 'bin/uv')


def without_mmcv(lock, mmcv):
    """The lock without its entry for mmcv, and that entry as one line."""
    entry = re.search(rf'^{mmcv}==.*\n(?: .*\n)+', lock, re.MULTILINE).group()
    pins = re.sub(r'\\\n|#.*', '', entry).split()
    return lock.replace(entry, ''), ' '.join(pins)


def install_packages(stack, lock):
    venv = ROOT / stack.venv
    if stack.mmcv:
        check_disk()
    uv = find_uv()
    ours = '{}.{}'.format(*sys.version_info) == stack.python
    # Make a new venv each time: nothing shows whether an old one is complete,
    # and uv's cache fills a new one in seconds.
    step(
        f'{venv.name}, with Python {stack.python}',
        [uv, 'venv', '-q', '--clear', venv, '--python']
        + [sys.executable if ours else stack.python],
        f'install Python {stack.python}, or name the one that you have: '
        f'`make PYTHON=/path/to/python{stack.python} ...`',
    )
    python = venv / 'bin/python'
    # Where Python writes no bytecode, as in most containers, each process
    # would compile 4,600 files.
    sync = [uv, 'pip', 'sync', '-q', '--compile-bytecode', '--require-hashes']
    sync += ['--python', python, '--build-constraint', BUILD]
    if not stack.mmcv:
        return step(f'{lock.read_text().count("==")} packages', [*sync, lock])
    check_compiler(python)
    rest, mmcv = without_mmcv(lock.read_text(), stack.mmcv)
    packages = venv / 'packages.txt'
    packages.write_text(rest)
    count = f'{rest.count("==")} packages'
    step(f'{count}, the first time a download of 3 GB', [*sync, packages])
    title = f'{mmcv.split()[0]} with its operators, minutes the first time'
    step(title, [python, BUILD_MMCV, mmcv])


def files(*paths):
    """The files at and under these paths of the checkout."""
    for path in (ROOT / path for path in paths):
        if path.is_dir():
            yield from files(*sorted(path.iterdir()))
        elif path.suffix not in ('.pyc', '.so'):
            yield path


def once(stamp, inputs, action):
    """Does it, unless it was done here with the same inputs."""
    # The path too: a moved environment does not work.
    digest = hashlib.sha256(str(stamp).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        action()
        stamp.write_text(digest.hexdigest())


def install(name):
    stack = STACKS[name]
    venv, lock = ROOT / stack.venv, LOCKS / f'{name}.txt'
    inputs = [lock, BUILD, *files('requirements/install.py', BUILD_MMCV)]
    once(venv / '.packages', inputs, lambda: install_packages(stack, lock))
    if stack.install:
        command = [venv / 'bin/python', *stack.install.split()]
        inputs = files('setup.py', 'setup.cfg', *stack.sources)
        once(venv / '.mmpsa', inputs, lambda: step('mmpsa', command))


def lock():
    """Pins what the lists ask for; a pin that still serves stays."""
    uv = find_uv()
    for name, stack in STACKS.items():
        command = [uv, 'pip', 'compile', '-q', '--generate-hashes']
        command += ['--python-version', stack.python]
        command += ['--python-platform', 'x86_64-unknown-linux-gnu']
        command += ['--build-constraint', BUILD]
        overrides = LOCKS / f'{name}.overrides'
        if overrides.exists():
            command += ['--override', overrides]
        command += ['--custom-compile-command', 'make lock']
        command += ['-o', f'requirements/stacks/{name}.txt']
        step(f'locking {name}', [*command, f'requirements/stacks/{name}.in'])


def main():
    if sys.version_info < (3, 8):
        stop(f'it takes Python 3.8 or newer, {sys.executable} is older')
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    name = sys.argv[1] if len(sys.argv) > 1 else 'openmmlab'
    if name == 'lock':
        return lock()
    if name not in STACKS:
        stop(f'STACK must be one of {", ".join(STACKS)}, got {name!r}')
    check_machine()
    install(name)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        stop('interrupted; the same command begins that step again')
    except OSError as error:
        stop(error)
