"""Statistics of a grid against scipy, and what has no answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nvlm.ablate.significance import (
    holm,
    mean_of,
    paired_questions,
    paired_t,
    t_quantile,
    t_two_sided,
)


def test_students_t_against_scipy(measure):
    freedoms = [1, 2, 3, 4, 7, 19, 100, 5000]
    values = [0.0, 1e-6, 0.01, 0.5, 1.0, 2.2, 12.7, 318.0, 1e5]
    errors = [
        abs(t_two_sided(t, freedom) / (2 * stats.t.sf(t, freedom)) - 1)
        for freedom in freedoms
        for t in values
        if stats.t.sf(t, freedom) > 1e-290
    ]
    measure("two-sided p of Student's t, relative", "scipy.stats.t", max(errors), 5e-11)
    quantiles = [
        abs(t_quantile(confidence, freedom) / stats.t.ppf((1 + confidence) / 2, freedom) - 1)
        for freedom in freedoms
        for confidence in (0.5, 0.9, 0.95, 0.999)
    ]
    measure("quantile of Student's t, relative", "scipy.stats.t", max(quantiles), 1e-11)


@pytest.mark.parametrize("num", [2, 3, 5, 30])
def test_paired_differences_against_scipy(num: int, measure):
    generator = np.random.default_rng(num)
    base = generator.normal(0.5, 0.1, num)
    own = base + generator.normal(0.03, 0.05, num)
    found = paired_t((own - base).tolist())
    theirs = stats.ttest_rel(own, base)
    low, high = theirs.confidence_interval(0.95)
    assert found.p_value is not None and found.mean.interval is not None
    numbers = np.array([found.p_value, *found.mean.interval])
    error = np.abs(numbers / np.array([theirs.pvalue, low, high]) - 1).max()
    measure(f"paired t of {num}: p and interval, relative", "scipy.stats.ttest_rel", error, 1e-10)


def test_what_cannot_be_tested_has_no_p_value():
    assert mean_of([0.4]).interval is None and paired_t([0.4]).p_value is None
    assert paired_t([0.0, 0.0, 0.0]).p_value == 1
    # Equal differences have no spread: by t they would be certain.
    assert paired_t([0.25, 0.25]).p_value is None
    assert paired_t([0.1 + 0.2, 0.3]).p_value is None
    assert paired_questions([{"a": 1.0}], [{"b": 1.0}]) == (None, 0, "")


def test_holm_against_scipys_stepwise_rule():
    generator = np.random.default_rng(0)
    for _ in range(20):
        p_values = generator.uniform(0, 0.2, 7)
        # Reject in order while p <= alpha / (m - rank): what Holm's adjusted values say at alpha.
        adjusted = holm(p_values.tolist())
        for alpha in (0.01, 0.05, 0.2):
            rejected, order = set(), np.argsort(p_values)
            for rank, at in enumerate(order):
                if p_values[at] > alpha / (len(order) - rank):
                    break
                rejected.add(int(at))
            assert {at for at, p in enumerate(adjusted) if p is not None and p <= alpha} == rejected
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_questions_of_one_seed_by_mcnemar_as_scipys_binomial_test():
    generator = np.random.default_rng(3)
    base = dict(enumerate(generator.integers(0, 2, 80).astype(float).tolist()))
    own = {at: float(score or generator.random() < 0.3) for at, score in base.items()}
    own |= dict.fromkeys(range(3), 0.0)
    p_value, num, test = paired_questions([base], [own])
    better = sum(own[at] > base[at] for at in base)
    worse = sum(own[at] < base[at] for at in base)
    assert (num, test) == (80, "McNemar, exact")
    assert p_value == pytest.approx(stats.binomtest(better, better + worse).pvalue, rel=1e-12)


def test_a_question_counts_once_however_many_seeds_answer_it():
    generator = np.random.default_rng(5)
    base = generator.random((3, 60))
    own = base + generator.normal(0.05, 0.2, 60)
    as_rows = [[dict(enumerate(row.tolist())) for row in some] for some in (base, own)]
    p_value, num, test = paired_questions(*as_rows)
    theirs = stats.permutation_test(
        ((own - base).mean(axis=0),), np.mean, permutation_type="samples", n_resamples=20_000,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert (num, test) == (60, "sign flips")
    assert p_value == pytest.approx(theirs.pvalue, abs=0.015)
    # Three copies of one seed say no more than it does.
    one = paired_questions(as_rows[0][:1], as_rows[1][:1])
    assert paired_questions(as_rows[0][:1] * 3, as_rows[1][:1] * 3) == one
