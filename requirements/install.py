"""Makes ``.venv``, the environment pinned in ``requirements/lock.txt``.

``make env`` runs it. What is done is not done again: after an interruption it
goes on where it stopped, after a change of the lock it installs the change.
Standard library only, and whatever goes wrong ends with one clear line.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin/python'
STAMP = VENV / '.installed'
LOCK = ROOT / 'requirements/lock.txt'
# What .venv is made from; when one changes, it is brought up to date.
INPUTS = (
    *sorted(LOCK.parent.glob('*.txt')),
    ROOT / 'setup.py',
    ROOT / 'setup.cfg',
    ROOT / 'mmpsa/version.py',
    ROOT / 'mmpsa/ops/csrc/cpp_passes.cpp',
)

SUPPORTED = 'CPython 3.11 on Linux x86_64'
# Measured: 5.8 GB of .venv, 2.9 GB of downloads held until they are
# installed, and the same again in pip's cache.
NEEDED_GB = 12
# Measured: processor minutes that the operators of mmcv take to compile.
MMCV_MINUTES = 27

ENVIRONMENT = dict(
    os.environ,
    TMPDIR=str(VENV / 'tmp'),  # /tmp is often too small for torch
    PIP_DISABLE_PIP_VERSION_CHECK='1',
    # mmcv with operators for the CPU: those for CUDA take a CUDA toolkit of
    # torch's own version, and nothing here calls them.
    MMCV_WITH_OPS='1',
    FORCE_CUDA='0',
    CUDA_VISIBLE_DEVICES='',
    MAX_JOBS=str(os.cpu_count()),
    # Debug symbols, which Python's own flags ask for, double the time.
    CFLAGS=f'{os.environ.get("CFLAGS", "")} -g0',
)


def stop(message):
    sys.exit(f'make env: {message}')


def this_python():
    version = '.'.join(platform.python_version_tuple()[:2])
    machine = f'{platform.system()} {platform.machine()}'
    return f'{platform.python_implementation()} {version} on {machine}'


def check_python():
    if this_python() != SUPPORTED:
        stop(
            f'the pinned versions are for {SUPPORTED}, this is '
            f'{this_python()}; name another with `make PYTHON=...`'
        )
    for module in ('venv', 'ensurepip'):
        if importlib.util.find_spec(module) is None:
            stop(
                f'{sys.executable} has no module {module} (on Debian and '
                'Ubuntu: apt install python3.11-venv)'
            )


def check_compiler():
    compiler = os.environ.get('CXX', 'c++')
    headers = sysconfig.get_path('include')
    probe = f'{compiler} -std=c++17 -fsyntax-only -I {headers} -x c++ -'
    try:
        done = subprocess.run(
            shlex.split(probe),
            input='#include <optional>\n#include <Python.h>\n',
            stderr=subprocess.PIPE,
            text=True,
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
            f'Debian and Ubuntu: apt install g++ python3.11-dev): {error}'
        )


def check_disk():
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        stop(
            f'the disk of {ROOT} has {free:.1f} GB free, the environment '
            f'needs about {NEEDED_GB} GB while it is made'
        )


def run(command, watch=None):
    """Runs a command, hands its output to ``watch`` line by line if given.

    Returns the exit code. The command leads a process group of its own, so
    that an interruption ends all of it, compilers too.
    """
    process = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.PIPE if watch else None,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    try:
        for line in process.stdout or ():
            watch(line)
        return process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise


def step(title, command, watch=None):
    print(f'== {title}', flush=True)
    if run(command, watch):
        free = shutil.disk_usage(ROOT).free / 1e9
        reason = 'see the messages above'
        if free < 4:  # pip frees its downloads when it fails
            reason = f'the disk is full, or was ({free:.1f} GB free now)'
        stop(f'failed at "{title}": {reason}; `make env` goes on from there')


def pip_install(*arguments):
    options = ('--no-deps', '--no-build-isolation', *arguments)
    return [str(PYTHON), '-m', 'pip', 'install', *options]


def is_sound():
    """Whether .venv was made to the end, here, by a Python of this version.

    The launcher of pip holds the path where it was made, so that a copied or
    moved .venv is told apart too.
    """
    try:
        version = subprocess.check_output(
            [str(VENV / 'bin/pip'), '--version'],
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return f' {VENV}/lib/python3.11/' in version


def remove_half_installed():
    """Forgets packages whose installation was cut off.

    pip writes RECORD last, but takes a package without it for installed.
    """
    for info in VENV.glob('lib/python3.11/site-packages/*.dist-info'):
        if not (info / 'RECORD').exists():
            shutil.rmtree(info)


def mmcv_works():
    return run([str(PYTHON), '-c', 'import mmcv.ops'], lambda line: None) == 0


def build_mmcv(*arguments):
    def watch(line):
        compiled = re.match(r'\s*\[(\d+)/(\d+)\]', line)
        if compiled:
            done, total = compiled.groups()
            print(f'   {done} of {total} files compiled', flush=True)
        elif 'error: ' in line.lower():
            print(line, end='', flush=True)

    step('mmcv with its operators', pip_install('-v', *arguments), watch)


def install():
    pins = [
        line for line in LOCK.read_text().splitlines() if line[:1] not in '#'
    ]
    first = [pin for pin in pins if re.match('(pip|setuptools|wheel)=', pin)]
    mmcv = next(pin for pin in pins if pin.startswith('mmcv='))
    packages = [pin for pin in pins if pin != mmcv]

    if not is_sound():
        check_disk()
        venv = [sys.executable, '-m', 'venv', '--clear', str(VENV)]
        step('a new .venv', venv)
    remove_half_installed()
    shutil.rmtree(VENV / 'tmp', ignore_errors=True)
    (VENV / 'tmp').mkdir()
    step('pip, setuptools, wheel', pip_install('--quiet', *first))
    step(
        f'{len(packages)} packages, a download of about 2.9 GB the first time',
        pip_install(*packages),
    )
    print(
        'Next: mmcv. If pip has it built, seconds; to compile it, about '
        f'{MMCV_MINUTES / os.cpu_count():.0f} minutes.',
        flush=True,
    )
    build_mmcv(mmcv)
    if not mmcv_works():
        # pip's cache does not tell for which torch it holds an mmcv.
        print('The mmcv that pip had does not import: compile it anew.')
        build_mmcv('--force-reinstall', '--no-cache-dir', mmcv)
        if not mmcv_works():
            stop(f'mmcv does not import: try {PYTHON} -c "import mmcv.ops"')
    step('mmpsa itself, editable', pip_install('-qq', '-e', str(ROOT)))
    shutil.rmtree(VENV / 'tmp')


def main():
    digest = hashlib.sha256(str(VENV).encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    key = digest.hexdigest()
    if STAMP.exists() and STAMP.read_text() == key:
        return
    check_python()
    check_compiler()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    install()
    STAMP.write_text(key)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        stop('interrupted; `make env` goes on from there')
    except OSError as error:
        stop(error)
