"""No kernel may fail unseen."""

import pytest

from mmpsa.ops import operator


@pytest.fixture(autouse=True)
def no_safety_net(monkeypatch):
    monkeypatch.setattr(operator, 'SAFETY_NET', False)
