"""A plan of a toy experiment."""

import pytest
from toy_plan import PLAN

from mmpsa.compare.plan import read_plan


@pytest.fixture
def write_plan(tmp_path):
    """Write the plan, with other lines; gives its path."""

    def write_plan(**changes):
        path = tmp_path / 'plan.py'
        lines = dict(PLAN, **changes).items()
        path.write_text('\n'.join(f'{k} = {v}' for k, v in lines if v))
        return path

    return write_plan


@pytest.fixture
def plan(write_plan):
    """Read the plan, with other lines."""
    return lambda **changes: read_plan(str(write_plan(**changes)), str)
