"""ChartQA's relaxed accuracy against lmms-eval and VLMEvalKit."""

from __future__ import annotations

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.relaxed_accuracy import relaxed_accuracy

ROWS = read_score_table("relaxed_accuracy")


@pytest.mark.parametrize(
    "implementation, differing",
    [
        ("lmms-eval chartqa", ("Yes", "yes\n")),  # which keeps outer spaces
        ("VLMEvalKit ChartQA", ("[1, 2]", "[1, 2]")),  # which takes such a truth for a list
    ],
)
def test_as_others_score(implementation, differing):
    different = [
        (row["truth"], row["answer"], row["scores"][implementation])
        for row in ROWS
        if relaxed_accuracy(row["answer"], row["truth"]) != row["scores"][implementation]
    ]
    assert different == [(*differing, 0)]
    assert {row["scores"][implementation] for row in ROWS} == {0, 1}


def test_a_negative_truth_has_an_interval():
    """NVLM's scripts ask for 0.95 x truth <= answer <= 1.05 x truth, which no number meets."""
    assert relaxed_accuracy("-10.4", "-10") == 1
    assert relaxed_accuracy("-10.6", "-10") == 0
    assert relaxed_accuracy("10", "-10") == 0


@pytest.mark.parametrize("answer, truth", [("1,000", "1000"), ("five", "5"), ("5%", "5")])
def test_what_nvlm_scripts_would_take(answer, truth):
    assert relaxed_accuracy(answer, truth) == 0
