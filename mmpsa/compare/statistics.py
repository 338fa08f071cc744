"""Paired differences: intervals, verdicts, and what more seeds would show."""

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL, POWER, MOST_SEEDS = 0.05, 0.8, 1000


class Difference(NamedTuple):
    """What an arm has over another: one value for each seed that both have.

    ``low`` and ``high`` are the ends of the mean's 95 % interval, ``p`` is
    that of the paired t-test, two-sided. One value has a mean alone, values
    that do not vary have no interval and no test. Without a value, all is
    None.
    """

    values: list
    mean: float = None
    deviation: float = None
    low: float = None
    high: float = None
    p: float = None


def difference(ours, theirs):
    """The :class:`Difference` of scores by seed to those of a baseline."""
    values = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(values) < 2:
        return Difference(values, *values)
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    if deviation == 0:  # where the t-test divides by zero
        return Difference(values, mean, 0.0)
    test = stats.ttest_1samp(values, 0)
    ends = map(float, test.confidence_interval(1 - LEVEL))
    return Difference(values, mean, deviation, *ends, float(test.pvalue))


def holm(ps):
    """The p values of several tests, corrected by Holm's method."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(np.argsort(ps, kind='stable')):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def verdict(mean, p, rule):
    """A verdict in words; ``rule`` is ``'greater'`` or ``'less'``."""
    if p >= LEVEL:
        return 'no clear difference'
    return 'clear gain' if (mean > 0) == (rule == 'greater') else 'clear loss'


def power(effect, seeds, level=LEVEL):
    """The chance that the test finds a difference, by its side too.

    Args:
        effect (float): The difference, in standard deviations.
        seeds (int or ndarray): How many, 2 at least.
        level (float): Of the test.
    """
    critical = stats.t.isf(level / 2, np.asarray(seeds) - 1)
    shift = abs(effect) * np.sqrt(seeds)
    return stats.nct.sf(critical, np.asarray(seeds) - 1, shift)


def detectable(deviation, seeds, level=LEVEL):
    """The difference that 2 or more seeds find with a power of 80 %."""
    effect = optimize.brentq(lambda x: power(x, seeds, level) - POWER, 0, 1000)
    return effect * deviation


def seeds_needed(wanted, deviation, level=LEVEL):
    """The seeds that find a difference so; None if more than 1,000."""
    seeds = np.arange(2, MOST_SEEDS + 1)
    enough = power(wanted / deviation, seeds, level) >= POWER
    return int(seeds[enough.argmax()]) if enough.any() else None
