"""MMBench's circular evaluation against lmms-eval's `MMBench_Evaluator`."""

from __future__ import annotations

import re

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.circular import circular_hits, question_of

TABLE = read_score_table("circular")


def test_as_lmms_eval():
    shares = set()
    for row in TABLE:
        hits = circular_hits(
            (r["index"], re.sub(r"\W", "", r["prediction"]) == r["answer"]) for r in row["rows"]
        )
        share = sum(hits.values()) / len(hits)
        assert share == pytest.approx(row["scores"]["lmms-eval eval_result"])
        shares.add(share)
    assert shares == {0, 0.5, 1}


def test_one_wrong_rotation_is_wrong():
    rows = [(7, True), (1_000_007, True), (2_000_007, False), (8, True), (3_000_008, True)]
    assert circular_hits(rows) == {7: False, 8: True}
    assert question_of(3_000_008) == 8
