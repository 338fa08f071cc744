"""Polarized Self-Attention for mmpose and mmsegmentation.

Importing the package registers the block and, for each codebase installed,
the backbones that take ``plugins=``.
"""

from .compatibility import (
    allow_checkpoint_classes,
    check_versions,
    installed_codebases,
)
from .version import __version__

check_versions()
allow_checkpoint_classes()

# They register a hook, and mmpsa://.
from . import visualization, zoo  # noqa: E402, F401
from .codebases import register_backbones  # noqa: E402
from .plugins import insert_plugins  # noqa: E402
from .psa import PolarizedSelfAttention  # noqa: E402

for _codebase in installed_codebases():
    register_backbones(_codebase)

# So that type='mmpsa.PSA' names the block as type='PSA' does.
PSA = PolarizedSelfAttention

__all__ = ['PSA', 'PolarizedSelfAttention', '__version__', 'insert_plugins']
