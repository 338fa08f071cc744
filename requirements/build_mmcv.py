"""Builds mmcv with its operators and installs it: in a minute, on two cores.

Use: python build_mmcv.py [REQUIREMENT]. Run it with the Python of the
environment that gets mmcv; torch must be installed there. REQUIREMENT is a
release of mmcv or onedl-mmcv. Default: 'mmcv==2.1.0'.

The usual build takes a quarter of an hour, since each of its 77 files reads
all of torch's headers and is compiled with debug symbols. Here, most of them
are compiled as one file, without symbols, by the language standard that torch
itself asks for. The wheel is kept in ~/.cache/mmpsa, a folder for each torch.
Operators for CUDA are built where mmcv builds them: where torch sees a GPU, or
FORCE_CUDA=1 is set.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

DEFAULT = 'mmcv==2.1.0'
# They define the same names as their neighbours.
APART = (
    'bezier_align',
    'psamask',
    'roi_align',
    'roi_align_rotated',
    'rotated_feature_align',
)


def stop(message):
    sys.exit(f'build_mmcv: {message}')


def pip(*arguments):
    command = [sys.executable, '-m', 'pip', *arguments]
    if subprocess.call(command):
        stop(f'this failed, see the messages above: {" ".join(command)}')


def cache_folder(torch, cuda):
    """Where the wheels are that fit this torch and no other."""
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    operators = 'cuda' if cuda else 'cpu'
    name = f'mmcv-for-torch-{torch.__version__}-{operators}-{recipe}'
    return Path(root, 'mmpsa', name)


def combine(source):
    """Put the C++ files of mmcv's sources together."""
    host = source / 'mmcv/ops/csrc/pytorch'
    for folder, apart in ((host, ()), (host / 'cpu', APART)):
        lines = []
        for path in sorted(folder.glob('*.cpp')):
            if path.stem not in apart:
                path.rename(path.with_suffix('.inc'))
                lines.append(f'#include "{path.stem}.inc"\n')
        (folder / 'combined.cpp').write_text(''.join(lines))
    setup = source / 'setup.py'
    # torch adds its own, which is newer for a newer torch.
    text = re.sub(r"'-std=c\+\+1\d'", '', setup.read_text(encoding='utf-8'))
    setup.write_text(text, encoding='utf-8')


def build(requirement, folder):
    """A wheel of ``requirement`` in ``folder``."""
    # Debug symbols, which Python's own flags ask for, double the time.
    os.environ['CFLAGS'] = f'{os.environ.get("CFLAGS", "")} -g0'
    os.environ['MMCV_WITH_OPS'] = '1'
    # Those that this process may use; macOS does not say.
    cores = getattr(os, 'sched_getaffinity', lambda _: range(os.cpu_count()))
    os.environ.setdefault('MAX_JOBS', str(len(cores(0))))
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        wanted = scratch / 'requirements.txt'
        wanted.write_text(requirement)
        options = ['-q', '--no-deps', '--no-build-isolation']
        fetch = ['--no-binary', ':all:', '-d', str(scratch), '-r', str(wanted)]
        pip('download', *options, *fetch)
        (archive,) = scratch.glob('*.tar.gz')
        shutil.unpack_archive(archive, scratch / 'unpacked')
        (source,) = (scratch / 'unpacked').iterdir()
        combine(source)
        pip('wheel', *options, '-w', str(scratch / 'built'), str(source))
        (wheel,) = (scratch / 'built').iterdir()
        # It appears under its name when it is whole.
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f'{wheel.name}.part'
        shutil.copy(wheel, partial)
        partial.rename(folder / wheel.name)
    return folder / wheel.name


def main():
    if sys.argv[1:2] in (['-h'], ['--help']):
        sys.exit(__doc__)
    requirement = sys.argv[1] if len(sys.argv) > 1 else DEFAULT
    name, _, version = requirement.split()[0].partition('==')
    if not re.fullmatch(r'[\w.]+', version):
        stop(f'REQUIREMENT must be like {DEFAULT!r}, got {requirement!r}')
    tools = 'torch', 'pip', 'pkg_resources', 'wheel', 'ninja'
    missing = [tool for tool in tools if find_spec(tool) is None]
    if missing:
        stop(
            f'{sys.executable} lacks {", ".join(missing)}; install torch for '
            "your machine, and the rest by: pip install 'setuptools<81' wheel "
            'ninja'
        )
    import torch

    cuda = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
    folder = cache_folder(torch, cuda)
    python = 'cp{}{}'.format(*sys.version_info)
    stem = f'{name.replace("-", "_")}-{version}-{python}-'
    wheel = next(iter(folder.glob(f'{stem}*.whl')), None)
    if wheel is None:
        print(f'Building {name} {version} for torch {torch.__version__}')
        wheel = build(requirement, folder)
    pip('install', '-q', '--no-deps', '--force-reinstall', str(wheel))
    if subprocess.call([sys.executable, '-c', 'import mmcv.ops']):
        wheel.unlink()
        stop(f'{wheel} does not import and was removed; run this again')
    print(f'Installed {wheel}')


if __name__ == '__main__':
    main()
