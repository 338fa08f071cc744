"""Differences, tests and power, against tables and other formulas."""

import math

import numpy as np
import pytest
from scipy import stats

from mmpsa.compare.statistics import (
    detectable,
    difference,
    holm,
    power,
    seeds_needed,
    verdict,
)


def test_paired_difference():
    ours = {0: 51.0, 1: 53.0, 2: 55.0, 3: 0.0}
    theirs = {2: 52.0, 1: 51.0, 0: 50.0, 9: 80.0}  # 3 and 9: no partner
    found = difference(ours, theirs)
    assert found.values == [1.0, 2.0, 3.0]
    assert (found.mean, found.deviation) == (2.0, 1.0)
    # t of 2 degrees of freedom at 97.5 %, from a table
    half = 4.303 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx(
        (2 - half, 2 + half), abs=1e-3
    )
    expected = stats.ttest_rel([51.0, 53.0, 55.0], [50.0, 51.0, 52.0])
    assert found.p == pytest.approx(expected.pvalue)


def test_one_seed_and_none():
    assert difference({0: 3.0}, {0: 2.0})[:5] == ([1.0], 1.0, *3 * [None])
    assert difference({0: 3.0}, {1: 2.0})[:3] == ([], None, None)
    assert difference({}, {}).p is None


@pytest.mark.parametrize('gain', [0.0, 1.0])
def test_differences_that_do_not_vary(gain):
    """Two equal ones prove nothing."""
    ours, theirs = {0: 5.0 + gain, 1: 7.0 + gain}, {0: 5.0, 1: 7.0}
    expected = [gain] * 2, gain, 0.0, None, None, None
    assert difference(ours, theirs) == expected


def test_holm():
    """The example of Holm's paper's method in textbooks, by hand."""
    # sorted: .005 × 4, .01 × 3, .03 × 2, .04 × 1, never below those before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    'mean, p, rule, words',
    [
        (1.0, 0.049, 'greater', 'clear gain'),
        (1.0, 0.05, 'greater', 'no clear difference'),
        (-1.0, 0.01, 'greater', 'clear loss'),
        (-1.0, 0.01, 'less', 'clear gain'),
        (1.0, 0.01, 'less', 'clear loss'),
    ],
)
def test_verdict(mean, p, rule, words):
    assert verdict(mean, p, rule) == words


def test_power_against_simulated_experiments():
    draws = np.random.default_rng(0).normal(1.2, 1.0, (20000, 6))
    t, p = stats.ttest_1samp(draws, 0, axis=1)
    found = ((p < 0.05) & (t > 0)).mean()
    assert power(1.2, 6) == pytest.approx(found, abs=0.01)


def test_what_seeds_can_see():
    for seeds in (2, 3, 10):
        assert power(detectable(1.0, seeds), seeds) == pytest.approx(0.8)
    assert detectable(2.0, 10) == pytest.approx(2 * detectable(1.0, 10))
    assert detectable(0.0, 3) == 0.0
    seen = detectable(1.0, 5, 0.01)
    assert power(seen, 5, 0.01) == pytest.approx(0.8)
    assert seen > detectable(1.0, 5)


def test_seeds_needed():
    """For one standard deviation, tables have 9.94: 10 seeds."""
    assert seeds_needed(1.0, 1.0) == 10
    assert power(1.0, 9) < 0.8 <= power(1.0, 10)
    assert seeds_needed(-1.0, 1.0) == 10
    assert seeds_needed(1.0, 1.0, 0.01) == 16
    assert power(1.0, 15, 0.01) < 0.8 <= power(1.0, 16, 0.01)
    assert seeds_needed(0.01, 1.0) is None
