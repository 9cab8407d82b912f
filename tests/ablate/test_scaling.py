"""The power law on data of known parameters and against scipy; how often intervals are right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from nvlm.ablate.scaling import fit_power_law, predict

SIZES = [1e6, 3e6, 1e7, 3e7, 1e8, 3e8]


def law(size, a, b, c):
    return a * np.asarray(size, float) ** -b + c


def test_known_parameters_are_found(measure):
    for a, b, c in ((400.0, 0.34, 1.69), (20.0, 0.1, 0.0), (3e5, 0.8, 2.5)):
        losses = law(SIZES, a, b, c).tolist()
        found = fit_power_law(SIZES, losses)
        errors = [found.a / a - 1, found.b / b - 1, found.c - c]
        measure(f"power law with b = {b}", "its parameters", max(map(abs, errors)), 1e-5)
        next_one = predict(found, SIZES, losses, 1e9)
        assert next_one.value == pytest.approx(law(1e9, a, b, c), rel=1e-6)


def test_least_squares_against_scipy(measure):
    generator = np.random.default_rng(2)
    sizes = np.repeat(SIZES, 3)
    losses = law(sizes, 400, 0.34, 1.69) + generator.normal(0, 0.02, len(sizes))
    found = fit_power_law(sizes.tolist(), losses.tolist())
    theirs, _ = curve_fit(law, sizes, losses, p0=(300, 0.3, 1.5), maxfev=20_000)
    at = np.geomspace(1e6, 1e9, 20)
    error = np.abs([found.at(size) for size in at] - law(at, *theirs)).max()
    measure("power law through noise, largest difference", "scipy.optimize.curve_fit", error, 1e-5)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(7)
    sizes, truth, tries = np.repeat(SIZES, 2), (400.0, 0.34, 1.69), 120
    inside, of_runs = 0, 0
    for _ in range(tries):
        losses = (law(sizes, *truth) + generator.normal(0, 0.02, len(sizes))).tolist()
        found = fit_power_law(sizes.tolist(), losses)
        there = predict(found, sizes.tolist(), losses, 1e9)
        (low, high), (least, most) = there.interval, there.with_noise
        inside += (low or -np.inf) <= law(1e9, *truth) <= (high or np.inf)
        run = law(1e9, *truth) + generator.normal(0, 0.02)
        of_runs += (least or -np.inf) <= run <= (most or np.inf)
    # 95 % of 120 are 114; fewer than 107 or more than 119.9 would be a surprise of 1 in 500.
    assert min(inside, of_runs) >= 107, (inside, of_runs)
    assert min(inside, of_runs) < tries


def test_what_is_no_power_law_is_refused():
    with pytest.raises(ValueError, match="at least 4 sizes, found 3"):
        fit_power_law(SIZES[:3] * 2, [3.0, 2.0, 1.5] * 2)
    with pytest.raises(ValueError, match="do not fall with size"):
        fit_power_law(SIZES, [1.0, 1.1, 1.2, 1.25, 1.3, 1.32])
