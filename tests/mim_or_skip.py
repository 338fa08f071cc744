"""Skips the tests of mim where it cannot find mmpsa."""

import pytest

from mmpsa.compatibility import is_distribution

pytest.importorskip('mim')
if is_distribution('onedl-mim'):
    pytest.skip(
        "the fork's mim looks for a package where the first file that pip "
        'lists is, which is beside the package',
        allow_module_level=True,
    )
