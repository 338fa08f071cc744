"""What the package needs of the ecosystem around it."""

from importlib import import_module
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import List

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

# torch.compiler is what older ones lack.
OLDEST_TORCH = '2.1'
# First version tested, first version not tested.
VERSIONS = {
    'mmengine': ('0.10.0', '0.11.0'),
    'mmcv': ('2.1.0', '2.2.0'),
    'mmpose': ('1.3.0', '1.4.0'),
    'mmseg': ('1.2.2', '1.3.0'),
    'mmdet': ('3.0.0', '3.4.0'),
    'mmpretrain': ('1.2.0', '1.3.0'),
}
CODEBASES = ('mmpose', 'mmseg', 'mmdet', 'mmpretrain')


def installed_codebases() -> List[str]:
    """Those of ``CODEBASES`` that are installed."""
    return [name for name in CODEBASES if find_spec(name)]


def check_versions() -> None:
    """Refuse a torch that is too old, OpenMMLab packages that are untested.

    Raises:
        ImportError: If torch is older than ``OLDEST_TORCH``, or if mmengine,
            mmcv or an installed codebase lies outside its range in
            ``VERSIONS``.
    """
    if digit_version(torch.__version__) < digit_version(OLDEST_TORCH):
        raise ImportError(
            f'mmpsa works with torch >={OLDEST_TORCH}; '
            f'torch {torch.__version__} is installed'
        )
    # mmengine and mmcv first: the codebases assert theirs at import.
    for name in ('mmengine', 'mmcv', *installed_codebases()):
        version = import_module(name).__version__
        low, high = VERSIONS[name]
        if not (
            digit_version(low) <= digit_version(version) < digit_version(high)
        ):
            raise ImportError(
                f'mmpsa works with {name} >={low}, <{high}; '
                f'{name} {version} is installed'
            )


def allow_checkpoint_classes() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's checkpoints.

    From torch 2.6 on that is the default, which mmengine's loader does not
    change, while its checkpoints hold the log history: numpy arrays in a
    :class:`mmengine.logging.HistoryBuffer`.
    """
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        return
    codes = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'
    scalar = np.float64(0).__reduce__()[0]
    reconstruct = np.empty(0).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *{type(np.dtype(code)) for code in codes},
            scalar,
            reconstruct,
            (_history_method, 'builtins.getattr'),
        ]
    )


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
