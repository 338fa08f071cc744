"""Polarized Self-Attention for mmpose and mmsegmentation.

Importing the package registers the block and, for each codebase installed,
the backbones that take ``plugins=``.
"""

import sys

from .version import __version__

__all__ = ['PSA', 'PolarizedSelfAttention', '__version__', 'insert_plugins']

# While Python looks for a module to run by `python -m`, sys.argv[0] is '-m'.
# `python -m mmpsa` has to say why the import below fails, so it does it
# itself.
if sys.argv[:1] != ['-m']:
    from .compatibility import (
        allow_checkpoint_classes,
        check_versions,
        installed_codebases,
    )

    check_versions()
    allow_checkpoint_classes()

    # They register a hook, and mmpsa://.
    from . import visualization, zoo  # noqa: F401
    from .codebases import register_backbones
    from .plugins import insert_plugins
    from .psa import PolarizedSelfAttention

    for _codebase in installed_codebases():
        register_backbones(_codebase)

    # So that type='mmpsa.PSA' names the block as type='PSA' does.
    PSA = PolarizedSelfAttention
