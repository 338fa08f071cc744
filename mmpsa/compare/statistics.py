"""Paired differences: intervals, verdicts, and what more seeds would show."""

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05  # two-sided
POWER = 0.8
MOST_SEEDS = 1000


class Difference(NamedTuple):
    """What an arm has over another one, from runs paired by seed.

    Attributes:
        values (list[float]): One for each seed that both have.
        mean (float): Their mean.
        deviation (float): Their standard deviation, of a sample.
        low (float): The lower end of the mean's 95 % interval, by Student's t.
        high (float): The upper end.
        p (float): Of the paired t-test, two-sided.
    """

    values: list
    mean: float
    deviation: float
    low: float
    high: float
    p: float


def difference(ours, theirs):
    """Compare the scores of two arms, seed by seed.

    Args:
        ours (dict[int, float]): Scores by seed.
        theirs (dict[int, float]): Those of the baseline.

    Returns:
        Difference: With one seed, or none, in common, its deviation, interval
        and p are None, its mean is None if there is none.
    """
    values = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(values) < 2:
        return Difference(values, *values or [None], None, None, None, None)
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    if deviation == 0:  # where the t-test divides by zero
        return Difference(values, mean, 0.0, mean, mean, float(mean == 0))
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(1 - LEVEL)
    return Difference(
        values, mean, deviation, float(low), float(high), float(test.pvalue)
    )


def holm(ps):
    """Correct the p values of several tests by Holm's method.

    Args:
        ps (list[float]): As they are.

    Returns:
        list[float]: Corrected, in the same order.
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(np.argsort(ps, kind='stable')):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def verdict(mean, p, rule):
    """A verdict in words.

    Args:
        mean (float): Of the differences.
        p (float): Corrected.
        rule (str): ``'greater'`` or ``'less'``: which is better.
    """
    if p >= LEVEL:
        return 'no clear difference'
    return 'clear gain' if (mean > 0) == (rule == 'greater') else 'clear loss'


def power(effect, seeds):
    """The chance that the paired t-test finds a difference, by its side too.

    Args:
        effect (float): The difference, in standard deviations of the
            differences.
        seeds (int or ndarray): How many, 2 at least.
    """
    degrees = np.asarray(seeds) - 1
    critical = stats.t.isf(LEVEL / 2, degrees)
    return stats.nct.sf(critical, degrees, abs(effect) * np.sqrt(seeds))


def detectable(deviation, seeds):
    """The difference that this many seeds find with 80 % power.

    Args:
        deviation (float): Of the differences.
        seeds (int): How many, 2 at least.
    """
    effect = optimize.brentq(lambda x: power(x, seeds) - POWER, 0, 100)
    return effect * deviation


def seeds_needed(wanted, deviation):
    """The seeds that find a difference with 80 % power.

    Args:
        wanted (float): The difference.
        deviation (float): Of the differences.

    Returns:
        int or None: None if it is more than 1,000.
    """
    if deviation == 0:
        return 2
    seeds = np.arange(2, MOST_SEEDS + 1)
    enough = power(wanted / deviation, seeds) >= POWER
    return int(seeds[enough.argmax()]) if enough.any() else None
