"""Setuptools' build backend, which also finds the environment's torch.

pip builds in an isolated environment, which has no torch. But the C++
extension must be built with the torch that it will run with.
"""

import shutil
import subprocess
import sys

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

# Where this Python looks for packages when no PYTHONPATH isolates it.
_CODE = 'import sys; print(*sys.path[1:], sep="\\n")'
_PATH = subprocess.check_output([sys.executable, '-E', '-c', _CODE], text=True)
# At the end of the path, so that the build requirements come first.
sys.path += [path for path in _PATH.splitlines() if path not in sys.path]


def build_wheel(*args, **kwargs):
    """Build a wheel as setuptools does, but delete ``build/`` first."""
    # The wheel would contain what an earlier build left there, perhaps an
    # extension for another torch.
    shutil.rmtree('build', ignore_errors=True)
    return build_meta.build_wheel(*args, **kwargs)
