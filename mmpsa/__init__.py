"""Polarized Self-Attention for mmpose and mmsegmentation.

Importing the package registers the block and, as soon as a codebase is used,
its backbones, necks and heads that take ``plugins=``.
"""

import sys

from .version import __version__

__all__ = [
    'PSA',
    'PolarizedSelfAttention',
    '__version__',
    'declare_block',
    'input_of',
    'insert_plugins',
    'pluggable',
]

try:
    from .compatibility import (
        allow_checkpoint_classes,
        check_versions,
        find_configs_of_forks,
        installed_codebases,
        warn_of_mmcv,
    )

    check_versions()
    allow_checkpoint_classes()
    find_configs_of_forks()

    # They register plugins, a hook, and mmpsa://.
    from . import timm_attention, visualization, zoo  # noqa: F401
    from .codebases import register_models
    from .plugins import (
        declare_block,
        input_of,
        insert_plugins,
        pluggable,
    )
    from .psa import PolarizedSelfAttention

    _codebases = installed_codebases()
    for _codebase in _codebases:
        warn_of_mmcv(_codebase)
    register_models(_codebases)

    # So that type='mmpsa.PSA' names the block as type='PSA' does.
    PSA = PolarizedSelfAttention
except Exception as _error:
    # `python -m mmpsa` imports this package before it runs __main__.py, which
    # has to report the error. Until then, sys.argv[0] is '-m'.
    if sys.argv[:1] != ['-m']:
        raise
    _failure = _error

    def __getattr__(name):
        raise _failure
