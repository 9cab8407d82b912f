"""Which option an answer names, against VLMEvalKit and lmms-eval."""

from __future__ import annotations

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.options import named_option, option_score

ROWS = read_score_table("options")


def test_as_vlmevalkit_reads_but_for_known_answers():
    different = {
        (row["answer"], named_option(row["answer"], row["options"]))
        for row in ROWS
        if named_option(row["answer"], row["options"]) != row["scores"]["VLMEvalKit can_infer"]
    }
    assert different == {
        # lower case
        ("b", "B"), ("c.", "C"), ("(b)", "B"),
        # the letter first, then an explanation that names another one or has many words
        ("B. because A is wrong", "B"), ("(B) because (A) is wrong", "B"),
        ("C) blue, as the sky", "C"),
        # an option's text with another's in it: `red`, `10`
        ("dark red", "B"), ("100", "B"), ("-10", "D"),
        # parts of words: the options `no`, `D`, `A`, `B`
        ("know", None), ("red", None), ("Red", None), ("RED.", None), ("vitamin", None),
        ("both", None), ("Bé", None),
    }  # fmt: skip


def test_what_lmms_eval_reads_is_read_alike():
    read = [row for row in ROWS if row["scores"]["lmms-eval scienceqa"]]
    assert len(read) > 50
    for row in read:
        assert named_option(row["answer"], row["options"]) == row["scores"]["lmms-eval scienceqa"]


@pytest.mark.parametrize("answer", ["A and B", "(A) or (B)", "A, B", "E", "", "know", "BANANA"])
def test_no_option(answer):
    assert named_option(answer, ["red", "green", "blue"]) is None


def test_an_article_is_no_option():
    """NVLM's scripts take all articles out of both sides, so that any of them is right for A."""
    assert option_score("the", ["red", "green"], "A") == 0
    assert option_score("A", ["red", "green"], "A") == 1
