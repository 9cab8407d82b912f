"""ANLS against lmms-eval, VLMEvalKit and the package `anls`."""

from __future__ import annotations

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.anls import anls, edit_distance

ROWS = read_score_table("anls")


def has_other_length(text: str) -> bool:
    """Whether a text as it stands, in upper case, is longer than what is compared of it."""
    return len(text.upper()) != len(" ".join(text.lower().split()))


@pytest.mark.parametrize("implementation", ["lmms-eval anls", "VLMEvalKit DocVQA"])
def test_as_others_score_except_for_lengths(implementation):
    different = []
    for row in ROWS:
        ours, theirs = anls(row["answer"], row["truths"]), row["scores"][implementation]
        if ours != pytest.approx(theirs):
            assert ours < theirs
            assert any(map(has_other_length, [row["answer"], *row["truths"]]))
            different.append(row["answer"])
    assert set(different) == {
        "xyz" + " " * 200, "dear sir" + " " * 30, "  dear   sir  ", "ﬁ", "strase", "big house",
    }  # fmt: skip
    assert len(different) == 22


def test_as_the_package_scores_except_at_a_half():
    """It gives 0 where half of the text is right, and counts ß as two letters."""
    different = {
        (row["answer"], row["truths"][0]): (anls(row["answer"], row["truths"]), theirs)
        for row in ROWS
        if anls(row["answer"], row["truths"]) != pytest.approx(theirs := row["scores"]["anls"])
    }
    assert different == {
        ("Dear", "Dear Sir"): (0.5, 0),
        ("Dear Madam", "Dear Sir"): (0.5, 0),
        ("ab", "a"): (0.5, 0),
        ("strase", "Straße 5"): (pytest.approx(5 / 8), pytest.approx(6 / 9)),
    }


def test_spaces_give_nothing():
    assert anls("wrong" + " " * 1000, ["right"]) == 0


@pytest.mark.parametrize(
    "a, b, distance",
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a", "b", 1)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance
