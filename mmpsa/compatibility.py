"""What the package needs of the ecosystem around it."""

import codecs
import pickle
import re
import runpy
import sys
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, List, Optional, Tuple

try:
    import numpy as np
    import torch
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.logging import HistoryBuffer
    from mmengine.utils import digit_version
except ModuleNotFoundError as error:
    raise ImportError(
        f'mmpsa needs torch and mmengine, and there is no {error.name}. '
        "Install torch for your machine, then mmengine: pip install 'mmengine"
        ">=0.10.0,<0.11.0', or pip install onedl-mmengine, its fork",
        name=error.name,
    ) from error

from .version import CODEBASES, OLDEST_TORCH, VERSIONS

# torch 2.1 has it elsewhere.
if hasattr(torch.compiler, 'is_compiling'):
    from torch.compiler import is_compiling  # noqa: F401
else:
    from torch._utils import is_compiling  # noqa: F401

# Distributions that bring the same package.
DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}
INSTALL_MMCV = (
    "pip install 'mmcv>=2.1.0,<2.2.0', or, from a checkout of mmpsa, "
    'python requirements/build_mmcv.py, which takes a minute'
)


def installed_version(package: str) -> Optional[str]:
    """The version of a package of OpenMMLab or its forks, without an import.

    Args:
        package (str): The name that it is imported by.

    Returns:
        str or None: None if it is not installed.
    """
    if package in sys.modules:
        return getattr(sys.modules[package], '__version__', None)
    spec = find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name at most
        return None
    # It is run, not read: a fork's version.py looks its version up.
    version = Path(spec.origin).with_name('version.py')
    return runpy.run_path(str(version))['__version__']


def release(version: str) -> Tuple[int, ...]:
    """The three numbers of a version.

    A snapshot counts as the release that it leads to: ``2.6.0a0+…``, as torch
    calls itself in NVIDIA's containers, is (2, 6, 0).
    """
    numbers = re.match(r'\d+(\.\d+)*', version)[0].split('.')
    return tuple(map(int, [*numbers, '0', '0'][:3]))


def is_too_old(name: str, version: str) -> bool:
    """Whether mmpsa cannot work with this version of a package."""
    return release(version) < release(VERSIONS[name][0])


def is_too_new(name: str, version: str) -> bool:
    """Whether a version is newer than those that mmpsa is tested with."""
    return release(version) >= release(VERSIONS[name][1])


def installed_codebases() -> List[str]:
    """The codebases that are installed and new enough."""
    return [
        name
        for name in CODEBASES
        if (version := installed_version(name)) is not None
        and not is_too_old(name, version)
    ]


def check_versions() -> None:
    """Refuse what cannot work, warn of what is not tested.

    Raises:
        ImportError: If torch, mmengine or mmcv is too old. mmcv may be
            absent.
    """
    if release(torch.__version__) < release(OLDEST_TORCH):
        raise ImportError(
            f'mmpsa works with torch >={OLDEST_TORCH}, and torch '
            f'{torch.__version__} is installed; '
            f"pip install 'torch>={OLDEST_TORCH}'"
        )
    for name, (low, high) in VERSIONS.items():
        version = installed_version(name)
        if version is None:
            continue
        brought_by = [
            distribution
            for distribution in DISTRIBUTIONS.get(name, ())
            if is_distribution(distribution)
        ]
        if len(brought_by) > 1:
            names = ' '.join(brought_by)
            warnings.warn(
                f'{" and ".join(brought_by)} are installed, and each writes '
                f'its files over those of the other. Keep one: '
                f'pip uninstall {names}; pip install the one you want',
                stacklevel=2,
            )
        if is_too_old(name, version):
            distribution = (brought_by or [name])[0]
            remedy = (
                f'{name} >={low} is needed, and {name} {version} is '
                f"installed; pip install '{distribution}>={low}'"
            )
            if name not in CODEBASES:
                raise ImportError(f'mmpsa cannot work: {remedy}')
            warnings.warn(
                f'mmpsa adds no plugins= to {name}: {remedy}', stacklevel=2
            )
        elif is_too_new(name, version):
            warnings.warn(
                f'mmpsa is tested with {name} >={low}, <{high}, and {name} '
                f'{version} is installed',
                stacklevel=2,
            )


def find_configs_of_forks() -> None:
    """Let ``_base_ = 'mmseg::…'`` find the configs of a fork.

    mmengine, its fork too, looks for them in upstream's distribution.
    """
    for package, (upstream, *forks) in DISTRIBUTIONS.items():
        if package in MODULE2PACKAGE and not is_distribution(upstream):
            for fork in filter(is_distribution, forks):
                MODULE2PACKAGE[package] = fork


def warn_of_mmcv(codebase: str) -> None:
    """Warn if an installed codebase will not import with the mmcv there is.

    Args:
        codebase (str): One of :data:`mmpsa.version.CODEBASES`, which must be
            installed.
    """
    mmcv = installed_version('mmcv')
    # The newest mmcv that its authors knew, by the name that they gave it.
    limit = re.search(
        "^(?:MMCV_MAX|mmcv_maximum_version) = '(.+)'",
        Path(find_spec(codebase).origin).read_text(),
        re.MULTILINE,
    )
    if mmcv is None:
        reason = f'there is no mmcv; {INSTALL_MMCV}'
    # As the codebase itself compares them.
    elif limit and digit_version(mmcv) >= digit_version(limit[1]):
        reason = (
            f'it refuses mmcv {mmcv}, although this mmcv works. mmpsa says in '
            'docs/versions.md how to raise the limit'
        )
    else:
        return
    warnings.warn(f'{codebase} will not import: {reason}', stacklevel=2)


def is_distribution(name: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        return bool(metadata.distribution(name))
    except metadata.PackageNotFoundError:
        return False


def allow_checkpoint_classes() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    From torch 2.6 on, ``weights_only=True`` is the default, and mmengine keeps
    it. But mmengine's checkpoints hold the log history: numpy arrays in a
    :class:`mmengine.logging.HistoryBuffer`. The loader of mmengine's fork
    allows a list of classes while it loads, and forbids all of them when it
    is done. It then also forbids those that this function had allowed.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):  # torch 2.4 has it
        torch.serialization.add_safe_globals(_ALLOWED)


def load_data(path, map_location=None) -> Any:
    """Load weights and plain data, and run no code of the file.

    Args:
        path (str or Path): A file that torch saved.
        map_location (str, optional): That of :func:`torch.load`.

    Returns:
        object: The content of the file.

    Raises:
        UnpicklingError: If the file holds anything else.
    """
    # Each time: the loader of mmengine's fork takes back what is allowed.
    allow_checkpoint_classes()
    if hasattr(torch.serialization, 'add_safe_globals'):
        return torch.load(path, map_location, weights_only=True)
    # Here weights_only=True would refuse numpy's arrays.
    return torch.load(
        path, map_location, pickle_module=_SafePickle, weights_only=False
    )


class _SafeUnpickler(pickle.Unpickler):
    """Finds what ``weights_only=True`` allows, and :data:`_ALLOWED`."""

    def find_class(self, module, name):
        allowed = {
            **torch._weights_only_unpickler._get_allowed_globals(),
            **{f'{f.__module__}.{f.__qualname__}': f for f in _ALLOWED},
        }
        if f'{module}.{name}' not in allowed:
            raise UnpicklingError(
                'Weights only load failed. Unsupported global: GLOBAL '
                f'{module}.{name}'
            )
        return allowed[f'{module}.{name}']


class _SafePickle:
    """Stands for the module ``pickle``."""

    Unpickler = _SafeUnpickler

    @staticmethod
    def load(file, **options):
        return _SafeUnpickler(file, **options).load()


def _history_method(cls, name):
    """The one use of ``getattr`` in a checkpoint: a HistoryBuffer's methods.

    Anything else that asks for it is refused, so that safety stays on.
    """
    if cls is not HistoryBuffer or name not in (
        'min',
        'max',
        'mean',
        'current',
    ):
        raise UnpicklingError(
            f'a checkpoint may only refer to the statistics of HistoryBuffer, '
            f'not to {name!r} of {cls!r}'
        )
    return getattr(cls, name)


def _named(function, path):
    """A function under the name by which checkpoints ask for it."""

    def call(*args):
        return function(*args)

    call.__module__, _, call.__qualname__ = path.rpartition('.')
    call.__name__ = call.__qualname__  # torch before 2.6 reads this
    return call


_ALLOWED = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    *{
        type(np.dtype(code))
        for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'
    },
    # numpy 2 renamed the package; files have either name.
    *(
        _named(function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (
            np.float64(0).__reduce__()[0],  # scalar
            np.empty(0).__reduce__()[0],  # _reconstruct
        )
        for core in ('core', '_core')
    ),
    _named(_history_method, 'builtins.getattr'),
    codecs.encode,  # what bytes are made by
]
