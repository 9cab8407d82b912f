"""OCRBench's points against lmms-eval."""

from __future__ import annotations

from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.containment import contains_answer

ROWS = read_score_table("containment")


def test_as_others_score():
    different = [
        (row["answer"], row["truths"])
        for row in ROWS
        if contains_answer(row["answer"], row["truths"], row["is_formula"])
        != row["scores"]["lmms-eval ocrbench"]
    ]
    # lmms-eval folds full-width letters, and finds an empty text in every answer.
    assert ("ABC", ["ＡＢＣ"]) in different
    assert all(truths == ["", "x"] for answer, truths in different if answer != "ABC")
    assert {row["scores"]["lmms-eval ocrbench"] for row in ROWS} == {0, 1}


def test_several_texts_are_one_point():
    """NVLM's scripts give two."""
    assert contains_answer("yes and no", ["yes", "no"]) == 1


def test_formulas_keep_their_case():
    assert contains_answer("\\frac {a} {b}", ["\\frac { a } { b }"], is_formula=True) == 1
    assert contains_answer("\\frac {A} {b}", ["\\frac { a } { b }"], is_formula=True) == 0
    assert contains_answer("\\frac {a} {b}", ["\\frac { a } { b }"]) == 0
