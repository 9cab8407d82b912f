"""How sure a score is, and whether two differ: resampling with a fixed seed, and exact tests.

Bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13.
McNemar's test in its exact form: a binomial test of the pairs that differ. Sign flips of paired
differences: Fisher's permutation test, drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_SEED = 20240917
NUM_RESAMPLES = 1000
# Of a summary that is no mean, which is computed anew each time.
NUM_RESAMPLES_OF_SUMMARY = 200
_NUM_FLIPS = 10_000
# Numbers in memory at a time.
_MOST_AT_ONCE = 4_000_000

Floats = NDArray[np.float64]


def bootstrap_error(scores: Floats) -> float:
    """Standard error of the mean of `scores` [n]; 0 where there is one."""
    return float(np.std(_means(scores), ddof=1))


def bootstrap_error_of(summary: Callable[[list[int]], float], num_items: int) -> float:
    """Standard error of a summary of items, given the positions of those that are drawn."""
    generator = np.random.default_rng(_SEED)
    drawn = [
        summary(generator.integers(0, num_items, num_items).tolist())
        for _ in range(NUM_RESAMPLES_OF_SUMMARY)
    ]
    return float(np.std(drawn, ddof=1))


def bootstrap_interval(differences: Floats) -> tuple[float, float]:
    """95 % interval (percentiles) of the mean of paired differences [n]."""
    low, high = np.percentile(_means(differences), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_interval_of(
    difference: Callable[[list[int]], float], num_items: int
) -> tuple[float, float]:
    """95 % interval of the difference of two summaries of the same drawn items."""
    generator = np.random.default_rng(_SEED)
    drawn = [
        difference(generator.integers(0, num_items, num_items).tolist())
        for _ in range(NUM_RESAMPLES_OF_SUMMARY)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(num_only_first: int, num_only_second: int) -> float:
    """Two-sided p value: right in one and wrong in the other, as often either way by chance?"""
    total, few = num_only_first + num_only_second, min(num_only_first, num_only_second)
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        for k in range(few + 1)
    ]
    tail = sum(math.exp(log - total * math.log(2)) for log in logs)
    return min(1.0, 2 * tail)


def sign_flips(differences: Floats) -> float:
    """Two-sided p value that the mean of paired differences [n] is 0: their signs drawn anew."""
    some = differences[differences != 0]
    if len(some) == 0:
        return 1.0
    generator = np.random.default_rng(_SEED)
    # As far from 0, up to rounding.
    seen = abs(some.sum()) * (1 - 1e-12)
    num_as_far, rows = 0, max(1, _MOST_AT_ONCE // len(some))
    for start in range(0, _NUM_FLIPS, rows):
        shape = (min(rows, _NUM_FLIPS - start), len(some))
        flips = generator.integers(0, 2, shape, dtype=np.int8) * 2 - 1
        num_as_far += int((abs(flips @ some) >= seen).sum())
    return (num_as_far + 1) / (_NUM_FLIPS + 1)


def _means(values: Floats) -> Floats:
    """[NUM_RESAMPLES] means of as many values, drawn with replacement."""
    generator = np.random.default_rng(_SEED)
    num_values = len(values)
    rows = max(1, _MOST_AT_ONCE // num_values)
    means = [
        values[
            generator.integers(0, num_values, (min(rows, NUM_RESAMPLES - start), num_values))
        ].mean(axis=1)
        for start in range(0, NUM_RESAMPLES, rows)
    ]
    return np.concatenate(means)
