"""Setuptools' build backend, with the environment's torch in sight.

pip builds apart from the environment that it installs into, where there is no
torch, and the C++ extension takes the torch that it will run with.
"""

import os
import shutil
import subprocess
import sys

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def _environment_path():
    """Where this Python looks for packages when nothing isolates it."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith('PYTHON')
    }
    code = 'import sys; print(*sys.path[1:], sep="\\n")'
    return subprocess.check_output(
        [sys.executable, '-c', code], env=plain, universal_newlines=True
    ).splitlines()


# Behind what was asked for to build with.
sys.path += [path for path in _environment_path() if path not in sys.path]


def build_wheel(*args, **kwargs):
    """As setuptools', from nothing."""
    # What an earlier build left, for another torch say, would go into it.
    shutil.rmtree('build', ignore_errors=True)
    return build_meta.build_wheel(*args, **kwargs)
