"""POPE's yes and no against POPE's own program (as InternVL has it), lmms-eval and VLMEvalKit."""

from __future__ import annotations

import re

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.yes_or_no import yes_no_metrics, yes_or_no

ROWS = read_score_table("yes_or_no")

# What is read otherwise than by POPE's program, and why; each is a yes there unless said.
DIFFERENT = {
    "no Latin letter": r"[^A-Za-z]*",
    "begins with yes, denies later: a no there": r"(?i)yes\b.*\bno\b.*",
    "upper case": r"(?s)(.*\b)?(NO|nO|NOT|Not|No-go)\b.*",
    "a mark beside it": r"(?s).*(no|No)[!;:)\"*_?…–/>`<\x00\u200b\u00a0-].*|answer:no|\x00no",
    "an end of a line or a tab beside it": r"(?s)\s*no[\n\t\r].*|[\n\t]no",
    "no word before the first period": r"[.\d\s]+ ?(No|no)\b.*",
    "n't": r".*n['’]t.*",
}  # fmt: skip


def test_as_popes_program_reads():
    found = set()
    for row in ROWS:
        answer, ours = row["answer"], yes_or_no(row["answer"])
        reasons = [r for r, pattern in DIFFERENT.items() if re.fullmatch(pattern, answer)]
        if ours != row["scores"]["InternVL eval_pope"]:
            assert reasons, (answer, ours)
            found |= set(reasons)
    assert found == set(DIFFERENT)
    same = [row for row in ROWS if yes_or_no(row["answer"]) == row["scores"]["InternVL eval_pope"]]
    assert len(same) > 200


def test_as_lmms_eval_where_the_answer_is_one_word():
    rows = [row for row in ROWS if re.fullmatch(r"(?i)\s*(yes|no)\s*", row["answer"])]
    assert len(rows) >= 10
    for row in rows:
        ours = float(yes_or_no(row["answer"]) == row["truth"])
        assert ours == row["scores"]["lmms-eval pope_process_results"], row["answer"]


def test_as_vlmevalkit_where_that_is_sure():
    """It wants one of the two words; `no` after a `yes`, or in a later sentence, is as it says."""
    sure = [row for row in ROWS if row["scores"]["VLMEvalKit YOrN_Extraction"] != "unknown"]
    other = {
        row["answer"]
        for row in sure
        if yes_or_no(row["answer"]) != row["scores"]["VLMEvalKit YOrN_Extraction"]
    }
    # The word stands in a later sentence.
    assert all(answer.count(".") and len(answer) > 5 for answer in other), other
    assert len(sure) > 100


def test_metrics():
    answers = ["yes", "yes", "yes", "no", "No.", "..."]
    truths = ["yes", "yes", "no", "no", "yes", "yes"]
    assert yes_no_metrics(answers, truths) == pytest.approx(
        {
            "accuracy": 50,
            "precision": 100 * 2 / 3,
            "recall": 50,
            "F1": 100 * 2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2),
            "yes ratio": 50,
        }
    )


def test_metrics_that_are_not_defined_are_nothing():
    assert yes_no_metrics(["no", "no"], ["yes", "no"]) == {
        "accuracy": 50, "precision": 0, "recall": 0, "F1": 0, "yes ratio": 0,
    }  # fmt: skip
    assert yes_no_metrics(["yes"], ["no"])["recall"] == 0
