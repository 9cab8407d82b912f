"""VQA's accuracy against lmms-eval and open_flamingo, whose code NVLM's scripts call."""

from __future__ import annotations

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.vqa_accuracy import (
    normalise_textvqa,
    normalise_vqa,
    textvqa_accuracy,
    vqa_accuracy,
)

ROWS = read_score_table("vqa_accuracy")


@pytest.mark.parametrize(
    "implementation, score",
    [
        ("lmms-eval vqav2", vqa_accuracy),
        ("open-flamingo VQAEval", vqa_accuracy),
        ("lmms-eval textvqa", textvqa_accuracy),
    ],
)
def test_as_others_score(implementation, score):
    ours = [score(row["answer"], row["people"]) for row in ROWS]
    assert ours == pytest.approx([row["scores"][implementation] for row in ROWS])
    assert {round(value, 9) for value in ours} >= {0, 0.3, 0.6, 0.9, 1}


def test_the_two_normalisations_differ_in_the_table():
    assert any(
        row["scores"]["lmms-eval vqav2"] != row["scores"]["lmms-eval textvqa"] for row in ROWS
    )


def test_always_normalised():
    """visualqa.org's program would compare these as they stand, because all ten people agree."""
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 1


def test_all_periods_go():
    """The reference removes 32 of them."""
    assert normalise_vqa(". " * 40 + "end") == "end"


def test_one_person_is_left_out():
    """NVLM's scripts count all ten: 1/3, 2/3, 1."""
    scores = [vqa_accuracy("x", ["x"] * n + ["y"] * (10 - n)) for n in range(6)]
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])


def test_fewer_people():
    assert vqa_accuracy("x", ["x"]) == 0  # nobody else is there to agree
    assert vqa_accuracy("x", ["x", "x", "x", "x"]) == 1


@pytest.mark.parametrize(
    "text, vqa, textvqa",
    [
        ("The two-story house!", "2 story house", "2 story house"),
        ("two-story", "2 story", "2 story"),
        ("Ten apples, please?", "10 apples please", "10 apples please"),
        ("1,000 (or so)", "1000 or so", "1000 or so"),
        ("dog's", "dog's", "dog 's"),
        ("who?me", "who me", "whome"),
        ("dont", "don't", "don't"),
        ("3.5 vs. 4.", "3.5 vs 4", "3.5 vs 4"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_normalised_texts(text, vqa, textvqa):
    assert normalise_vqa(text) == vqa
    assert normalise_textvqa(text) == textvqa
