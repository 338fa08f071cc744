"""Packaging; everything static is in setup.cfg.

``mim`` looks for a package's configs, tools and model index in a folder
``.mim`` inside the package.
"""

import runpy
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.develop import develop

ROOT = Path(__file__).resolve().parent
# Without these flags, compilers do not vectorise loops that call
# std::nearbyint or compare numbers.
VECTORISE = ('-fno-math-errno', '-fno-trapping-math')
EXTRAS = ('openmmlab', 'onedl', 'pose', 'seg', 'pretrain', 'timm', 'dev')
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


def requirements(name):
    return (ROOT / f'requirements/{name}.txt').read_text().splitlines()


class BuildWithMim(build_py):
    """Copies what mim needs into the built package."""

    def run(self):
        super().run()
        mim = Path(self.build_lib, 'mmpsa/.mim')
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in MIM_CONTENT:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name,
                    mim / name,
                    ignore=shutil.ignore_patterns('__pycache__'),
                )
            else:
                shutil.copy2(ROOT / name, mim)


class DevelopWithMim(develop):
    """Links what mim needs into the package's source folder."""

    def run(self):
        mim = ROOT / 'mmpsa/.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir()
        for name in MIM_CONTENT:
            (mim / name).symlink_to(Path('../..', name))
        super().run()


def extensions():
    """The C++ backend, or nothing where there is no torch to build it with.

    It is optional: where it does not compile, mmpsa installs without it.
    """
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        return {}

    class BuildIfPossible(BuildExtension.with_options(use_ninja=False)):
        def build_extensions(self):
            try:
                super().build_extensions()
            except (OSError, subprocess.CalledProcessError) as error:
                # torch looks for the compiler before setuptools gets to see
                # that the extension is optional.
                print(f'mmpsa goes without its C++ kernels: {error}')

    extension = CppExtension(
        'mmpsa.ops._C',
        ['mmpsa/ops/csrc/autograd.cpp', 'mmpsa/ops/csrc/cpu.cpp'],
        depends=['mmpsa/ops/csrc/contract.h', 'mmpsa/ops/csrc/rows.h'],
        extra_compile_args=['-O3', '-fopenmp', *VECTORISE],
        extra_link_args=['-fopenmp'],
        optional=True,
    )
    return dict(
        ext_modules=[extension],
        cmdclass=dict(build_ext=BuildIfPossible),
    )


built = extensions()
setup(
    version=runpy.run_path(str(ROOT / 'mmpsa/version.py'))['__version__'],
    install_requires=requirements('runtime'),
    extras_require={name: requirements(name) for name in EXTRAS},
    ext_modules=built.get('ext_modules'),
    cmdclass=dict(
        build_py=BuildWithMim,
        develop=DevelopWithMim,
        **built.get('cmdclass', {}),
    ),
)
