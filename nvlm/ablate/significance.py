"""Means over seeds, their intervals, paired differences, and several of them at once.

Student's t: paired differences and their intervals (Student, "The probable error of a mean",
Biometrika 1908), by the incomplete beta function as Numerical Recipes (section 6.4) computes it.
Holm: "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics
1979. Questions are compared by the tests of `nvlm evaluate compare`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvlm.evaluate.suite.statistics import mcnemar, sign_flips

CONFIDENCE = 0.95
_MOST_TERMS = 500
_ENOUGH = 1e-15
_TINY = 1e-300


@dataclass(frozen=True)
class Mean:
    """A mean of so many numbers; `interval` is None where there is one only."""

    value: float
    num: int
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class PairedTest:
    """Is a mean of paired differences 0? `p_value` is None where that cannot be tested."""

    mean: Mean
    p_value: float | None


def t_two_sided(t: float, freedom: float) -> float:
    """Probability that Student's t with so many degrees of freedom is as far from 0 as `t`."""
    if math.isinf(t):
        return 0.0
    below = freedom + t * t
    return _incomplete_beta(freedom / 2, 0.5, freedom / below, t * t / below)


def t_quantile(confidence: float, freedom: float) -> float:
    """The t that is exceeded, to either side, with probability 1 - `confidence`."""
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if t_two_sided(middle, freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def mean_of(values: Sequence[float]) -> Mean:
    """With the interval of Student's t, at `CONFIDENCE`."""
    value, num = float(np.mean(values)), len(values)
    if num < 2:
        return Mean(value, num, None)
    width = t_quantile(CONFIDENCE, num - 1) * float(np.std(values, ddof=1)) / math.sqrt(num)
    return Mean(value, num, (value - width, value + width))


def paired_t(differences: Sequence[float]) -> PairedTest:
    """Student's paired t test.

    Its p value is None for a single difference, and for several that are all the same and not 0:
    there is no spread to compare them with.
    """
    mean = mean_of(differences)
    if mean.num < 2:
        return PairedTest(mean, None)
    spread = float(np.std(differences, ddof=1))
    if spread <= 1e-12 * abs(mean.value):
        return PairedTest(mean, 1.0 if mean.value == 0 else None)
    return PairedTest(mean, t_two_sided(mean.value / (spread / math.sqrt(mean.num)), mean.num - 1))


def paired_questions(
    base: Sequence[Mapping[Any, float]], own: Sequence[Mapping[Any, float]]
) -> tuple[float | None, int, str]:
    """Are the same questions answered better, seed by seed?

    Args:
        base, own: question -> score, for each seed; a question counts where both have it with
            every seed. Its difference is the mean over seeds, so that a question is one
            observation however many seeds there are.

    Returns:
        p value (None: no question in common), number of questions, name of the test: McNemar's
        exact test for right and wrong answers of one seed, else sign flips.
    """
    common = set.intersection(*(set(scores) for scores in (*base, *own)))
    questions = sorted(common)
    if not questions:
        return None, 0, ""
    theirs = np.array([[scores[question] for question in questions] for scores in base])
    ours = np.array([[scores[question] for question in questions] for scores in own])
    if len(base) == 1 and {*theirs.flat, *ours.flat} <= {0.0, 1.0}:
        only = int((theirs > ours).sum()), int((theirs < ours).sum())
        return mcnemar(*only), len(questions), "McNemar, exact"
    return sign_flips((ours - theirs).mean(axis=0)), len(questions), "sign flips"


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values as they are for so many tests together, in their order; None stays None."""
    order = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, at) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[at] = largest
    return adjusted


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function, 0 <= x <= 1; `rest` is 1 - x, to its last bits."""
    if x <= 0 or rest <= 0:
        return float(x > 0)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    # The fraction converges fast on one side only.
    if x < (a + 1) / (a + b + 2):
        return math.exp(log + a * math.log(x) + b * math.log1p(-x)) * _fraction(a, b, x) / a
    front = math.exp(log + a * math.log1p(-rest) + b * math.log(rest))
    return 1 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Its continued fraction, by Lentz's method."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            result *= c * d
        if abs(c * d - 1) < _ENOUGH:
            break
    return result


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
