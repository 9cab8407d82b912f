"""A power law through the cells of several sizes, and what it gives for the next one.

loss = a size^-b + c, as in "Scaling Laws for Neural Language Models" (Kaplan et al. 2020) with the
floor of "Scaling Laws for Autoregressive Generative Modeling" (Henighan et al. 2020). For a fixed b
the law is linear in a and c, so least squares only searches b. Intervals are profiles: all values
for which the best of the other parameters fits not worse than an F test at 95 % allows (Bates and
Watts, "Nonlinear Regression Analysis and Its Applications", 1988, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.ablate.significance import CONFIDENCE, t_quantile

# Of three sizes, any three parameters fit.
LEAST_SIZES = 4
_EXPONENTS = np.geomspace(1e-3, 20.0, 100)
_NUM_ZOOMS = 7
_MOST_DOUBLINGS = 60
_NUM_HALVINGS = 30

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PowerLaw:
    """loss = a size^-b + c.

    b_interval: 95 %; None at an end: the points leave it open.
    error: standard deviation of the points about the law.
    """

    a: float
    b: float
    c: float
    b_interval: tuple[float | None, float | None]
    error: float
    num_points: int

    def at(self, size: float) -> float:
        return self.a * size**-self.b + self.c


@dataclass(frozen=True)
class Prediction:
    """What the law gives at `size`: `interval` (95 %) of the law itself, `with_noise` of a run."""

    size: float
    value: float
    interval: tuple[float | None, float | None]
    with_noise: tuple[float | None, float | None]


def fit_power_law(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """Least squares over all points, which may be several of a size.

    Raises:
        ValueError: fewer than `LEAST_SIZES` sizes, or losses that do not fall with size.
    """
    x, y = _scaled(sizes), np.array(losses, np.float64)
    if len(set(sizes)) < LEAST_SIZES:
        raise ValueError(f"a power law needs at least {LEAST_SIZES} sizes, found {len(set(sizes))}")
    b = _best_exponent(lambda b: _squares(x, y, b))
    (a,), (c,) = (part.tolist() for part in _linear(x, y, np.array([b])))
    if a <= 0:
        raise ValueError("the losses do not fall with size: there is no power law to fit")
    least = float(_squares(x, y, np.array([b]))[0])
    freedom = len(y) - 3
    allowed = least * (1 + t_quantile(CONFIDENCE, freedom) ** 2 / freedom)
    middle = math.exp(np.log(np.array(sizes)).mean())
    return PowerLaw(
        a=a * middle**b,
        b=b,
        c=c,
        b_interval=_exponents_within(x, y, b, allowed),
        error=math.sqrt(least / freedom),
        num_points=len(y),
    )


def predict(
    law: PowerLaw, sizes: Sequence[float], losses: Sequence[float], size: float
) -> Prediction:
    """The law's value at `size` and its interval, from the points that it was fitted to."""
    y = np.array(losses, np.float64)
    middle = math.exp(np.log(np.array(sizes)).mean())
    x, there = np.array(sizes, np.float64) / middle, size / middle
    freedom, least = len(y) - 3, law.error**2 * (len(y) - 3)
    quantile = t_quantile(CONFIDENCE, freedom)
    allowed = least * (1 + quantile**2 / freedom)
    value = law.at(size)

    def worse(at: float) -> bool:
        return _least_through(x, y, there, at) > allowed

    step = max(law.error, 1e-9 * max(1.0, abs(value)))
    low, high = _edge(worse, value, -step), _edge(worse, value, step)
    noise = quantile * law.error
    with_noise = tuple(
        None if end is None else value + sign * math.hypot(end - value, noise)
        for end, sign in ((low, -1), (high, 1))
    )
    return Prediction(size, value, (low, high), (with_noise[0], with_noise[1]))


def _scaled(sizes: Sequence[float]) -> Floats:
    """Sizes about 1, whose powers neither vanish nor overflow."""
    values = np.array(sizes, np.float64)
    return values / math.exp(np.log(values).mean())


def _linear(x: Floats, y: Floats, b: Floats) -> tuple[Floats, Floats]:
    """The best a and c at each b, all [b]; c is not below 0, as a loss is not."""
    powers = x ** -b[:, None]
    spread = powers - powers.mean(axis=1, keepdims=True)
    a = spread @ y / (spread**2).sum(axis=1)
    c = y.mean() - a * powers.mean(axis=1)
    without = powers @ y / (powers**2).sum(axis=1)
    return np.where(c < 0, without, a), np.maximum(c, 0)


def _squares(x: Floats, y: Floats, b: Floats) -> Floats:
    a, c = _linear(x, y, b)
    return ((y - a[:, None] * x ** -b[:, None] - c[:, None]) ** 2).sum(axis=1)


def _least_through(x: Floats, y: Floats, there: float, value: float) -> float:
    """The least sum of squares of a law that is `value` at the size `there`."""

    def squares(b: Floats) -> Floats:
        at_there = there**-b
        powers = x ** -b[:, None] - at_there[:, None]
        a = np.maximum(powers @ (y - value) / (powers**2).sum(axis=1), 0)
        a = np.minimum(a, max(value, 0.0) / at_there)  # or c would be below 0
        return ((y - value - a[:, None] * powers) ** 2).sum(axis=1)

    return float(squares(np.array([_best_exponent(squares)]))[0])


def _best_exponent(squares: Callable[[Floats], Floats]) -> float:
    """The b with the least squares: the best of a grid, then of finer ones about it."""
    grid = _EXPONENTS
    for _ in range(_NUM_ZOOMS):
        at = int(np.argmin(squares(grid)))
        low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
        grid = np.linspace(low, high, 21)
    return float(grid[np.argmin(squares(grid))])


def _exponents_within(
    x: Floats, y: Floats, best: float, allowed: float
) -> tuple[float | None, float | None]:
    def is_outside(b: float) -> bool:
        return float(_squares(x, y, np.array([b]))[0]) > allowed

    low = _edge(is_outside, best, -1e-3, float(_EXPONENTS[0]))
    high = _edge(is_outside, best, 1e-3, float(_EXPONENTS[-1]))
    return low, high


def _edge(
    is_outside: Callable[[float], bool], start: float, step: float, limit: float | None = None
) -> float | None:
    """Where, going from `start` by doubled steps, `is_outside` becomes true; None: nowhere."""
    inside, outside = start, start
    for _ in range(_MOST_DOUBLINGS):
        outside = start + step
        if limit is not None and (outside - limit) * step > 0:
            outside = limit
        if is_outside(outside):
            break
        if outside == limit:
            return None
        inside, step = outside, 2 * step
    else:
        return None
    for _ in range(_NUM_HALVINGS):
        middle = (inside + outside) / 2
        if is_outside(middle):
            outside = middle
        else:
            inside = middle
    return (inside + outside) / 2
