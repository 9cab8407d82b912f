"""MMMU's reading of answers against its own code and lmms-eval."""

from __future__ import annotations

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.mmmu_answers import chosen_letter, open_score
from nvlm.evaluate.scorers.options import named_option

CHOICES = read_score_table("mmmu_choices")
OPEN = read_score_table("mmmu_open")


def test_letters_as_mmmu_reads_them():
    read = [row for row in CHOICES if row["scores"]["MMMU"]]
    assert len(read) > 150
    for row in read:
        assert chosen_letter(row["answer"], row["options"]) == row["scores"]["MMMU"], row


def test_what_mmmu_would_draw_is_read_or_wrong():
    """Where the reference draws a letter; the table has none there."""
    drawn = [row for row in CHOICES if row["scores"]["MMMU"] is None]
    read = set()
    for row in drawn:
        letter = chosen_letter(row["answer"], row["options"])
        assert letter == named_option(row["answer"], row["options"])
        if letter:
            read.add(row["answer"])
    assert read == {
        # a letter with a mark that MMMU's rules do not know, in lower case, or with a text
        "b", "c.", "(b)", "B)", "[B]", "B.'", "B\n", "\nB", "Answer:B", "**B**", "\\boxed{B}",
        "\\boxed{C}.", "B. dark red", "B. red", "A. dark red", "C: blue", "C) blue, as the sky",
        "B\nbecause it is",
        # the text of an option, in five words or less
        "red", "Red", "RED.", "dark red", "the colour is blue", "yes", "Yes", "Yes.", "no",
        "1,000", "100", "10", "-10", "<image 2>", "none of these", "I cannot tell",
        "$B$", "B\u200b",  # with an option whose text is B
    }  # fmt: skip


def test_letters_that_lmms_eval_reads_in_words():
    """It looks for the letter before any space or period: the B of `AB`, the A of `BANANA`."""
    different = {
        row["answer"]: row["scores"]["lmms-eval mmmu"]
        for row in CHOICES
        if chosen_letter(row["answer"], row["options"]) != row["scores"]["lmms-eval mmmu"]
        and row["scores"]["lmms-eval mmmu"]
    }
    assert different == {"AB": "B", "BANANA": "A", "RED.": "D", "B" * 300: "B"}


@pytest.mark.parametrize("implementation", ["MMMU", "lmms-eval mmmu"])
def test_open_answers_as_others_score(implementation):
    ours = [open_score(row["answer"], row["truths"]) for row in OPEN]
    assert ours == [row["scores"][implementation] for row in OPEN]
    assert set(ours) == {0, 1}
