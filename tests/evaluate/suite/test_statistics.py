"""Resampling and tests of pairs, beside scipy and the closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from nvlm.evaluate.suite.statistics import (
    bootstrap_error,
    bootstrap_error_of,
    bootstrap_interval,
    bootstrap_interval_of,
    mcnemar,
    sign_flips,
)

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


def draw(num_values: int, seed: int = 0) -> np.ndarray:
    """Shares of 0, 0.3, 0.6, 0.9 and 1, as VQA accuracy gives them."""
    return np.random.default_rng(seed).choice([0, 0.3, 0.6, 0.9, 1], num_values)


@pytest.mark.parametrize("scores", [draw(400), draw(7), (draw(1000) > 0.8).astype(float)])
def test_standard_error_is_the_closed_form(scores):
    closed = scores.std() / np.sqrt(len(scores))
    # A standard deviation of 1,000 draws is itself off by a share of 1 / sqrt(2,000).
    assert bootstrap_error(scores) == pytest.approx(closed, rel=4 / np.sqrt(2000))
    assert bootstrap_error_of(lambda drawn: scores[drawn].mean(), len(scores)) == pytest.approx(
        closed, rel=4 / np.sqrt(400)
    )
    assert bootstrap_error(scores) == bootstrap_error(scores)  # a fixed seed


def test_standard_error_where_nothing_varies():
    assert bootstrap_error(np.ones(5)) == bootstrap_error(np.ones(1)) == 0


def test_interval_is_scipys_percentile_interval():
    differences = draw(300, 1) - draw(300, 2)
    theirs = stats.bootstrap(
        (differences,), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    width = theirs.high - theirs.low
    for ours in (
        bootstrap_interval(differences),
        bootstrap_interval_of(lambda drawn: differences[drawn].mean(), 300),
    ):
        assert ours == pytest.approx((theirs.low, theirs.high), abs=0.12 * width)


@pytest.mark.parametrize("pair", [(0, 0), (1, 0), (3, 3), (10, 2), (0, 12), (400, 460), (9, 8)])
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(pair):
    total = sum(pair)
    theirs = stats.binomtest(pair[0], total, 0.5).pvalue if total else 1.0
    assert mcnemar(*pair) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.15])
def test_sign_flips_are_scipys_paired_permutations(shift):
    first = draw(120, 3)
    second = np.clip(draw(120, 4) + shift, 0, 1)
    theirs = stats.permutation_test(
        (second, first), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        n_resamples=20_000, vectorized=True, rng=0,
    ).pvalue  # fmt: skip
    assert sign_flips(second - first) == pytest.approx(theirs, abs=0.02)


def test_sign_flips_of_few_pairs_are_all_permutations():
    differences = np.array([1, 0.3, -0.6, 0.9, 0, 1.0])
    theirs = stats.permutation_test(
        (differences, np.zeros(6)), lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples", vectorized=True,
    ).pvalue  # fmt: skip
    assert sign_flips(differences) == pytest.approx(theirs, abs=0.02)
    assert sign_flips(np.zeros(4)) == 1
