"""MathVista's accuracy against its own rules, as lmms-eval has them, without a judge."""

from __future__ import annotations

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.mathvista_answers import mathvista_score, said_number

ROWS = read_score_table("mathvista_answers")
INTEGER = {"answer": "3", "answer_type": "integer", "precision": None, "choices": None}


def test_what_needs_no_judge_is_right_alike():
    right = [row for row in ROWS if row["scores"]["lmms-eval without a judge"]]
    assert len(right) > 10
    for row in right:
        assert mathvista_score(row["answer"], row["truth"]) == 1, row


def test_what_is_found_without_a_judge():
    """All that the official program would need a language model for."""
    found = {
        (row["answer"], row["truth"]["answer"])
        for row in ROWS
        if mathvista_score(row["answer"], row["truth"])
        and not row["scores"]["lmms-eval without a judge"]
    }
    expected = {
        "14": ["14.0", "14.", "14 cm", "$14$", "14%", "\\boxed{14}", "The number missing is 14.",
               "The answer is 14.", "the answer is 14, not 13", "Answer: 14", "x = 14",
               "2 + 12 = 14", "13 or 14", "fourteen", "15\n14",
               "because " * 60 + "the answer is 14",
               "it is 14 because 2 + 12 = 14 and not 15"],
        "-3": ["- 3", "−3", "x=-3"],
        "1000": ["1,000", "1,000.0", "$1,000", "1e3"],
        "0.6": ["3/5", "\\frac{3}{5}", "0.6, which means six of ten"],
        "1.45": ["$1.45", "Luca needs $1.45 to buy it."],
        "[2007, 2008]": ["[2007, 2008]", "[2007,2008]", "[2007.0, 2008.0]", "(2007, 2008)",
                         "2007 and 2008", "between 2007 and 2008.", "2007-2008", "[2007, 2008"],
        "8/11": ["B", "(B)", "(b)", "b", "B.", "(B) 8/11", "B) 8/11",
                 "The correct answer is (B) 8/11.", "8/11 of it is blue"],
        "Yes": ["A", "(A)", "yes", "Yes.", "Yes, it is"],
    }  # fmt: skip
    assert found == {(answer, truth) for truth, answers in expected.items() for answer in answers}


def test_what_the_official_comparison_takes_and_we_do_not():
    read_otherwise = set()
    for row in ROWS:
        official = row["scores"]["lmms-eval answer alone"]
        if not official or mathvista_score(row["answer"], row["truth"]):
            continue
        if row["truth"]["choices"]:  # it takes the choice with the fewest edits
            if any(
                mathvista_score(row["answer"], {**row["truth"], "answer": choice})
                for choice in row["truth"]["choices"]
            ):
                read_otherwise.add(row["answer"])
        else:  # it cuts what is behind the point
            assert row["answer"] in {"14.4", "14.9", "1000.5"}
    assert read_otherwise == {"B) 8/11", "no idea"}  # both are No


@pytest.mark.parametrize(
    "answer, number",
    [
        ("-3", -3), ("− 3", -3), ("10-3", 3), ("x = 4 cm", 4), ("1,234.5", 1234.5), ("3/4", 0.75),
        ("\\dfrac{1}{4}", 0.25), ("3/0", None), ("", None), ("nan", None), ("inf", None),
        ("1e999", None), ("The answer is 14, twice 7.", 14), ("first 3, then 5", 5), ("½", None),
        ("1/" + "9" * 5000, None), ("9" * 5000, None), ("v1.0", None),
    ],
)  # fmt: skip
def test_said_number(answer, number):
    assert said_number(answer) == number


@pytest.mark.parametrize(
    "answer, choice",
    [
        ("The angle A is (C), so (B) is right", "dark red"),  # the last in brackets
        ("A question of colour, so the answer is B. Not C", "dark red"),  # behind `answer`
        ("the red one is darker than the blue one", "blue"),  # the last to be mentioned
        ("it is dark red", "dark red"),  # red ends there too
        ("It does not say.", None),  # MMMU's rules find `no` in it
        ("none of these", None),
    ],
)
def test_choices_in_prose(answer, choice):
    choices = ["red", "dark red", "blue", "no"]
    for each in choices:
        truth = {"answer": each, "answer_type": "text", "precision": None, "choices": choices}
        assert mathvista_score(answer, truth) == (each == choice)


def test_an_empty_answer_is_wrong():
    """NVLM's scripts end with an error."""
    assert mathvista_score("", INTEGER) == 0


def test_numbers_are_rounded():
    """NVLM's scripts cut 1.459 to 1.45, and compare texts."""
    truth = {"answer": "1.46", "answer_type": "float", "precision": 2.0, "choices": None}
    assert mathvista_score("1.459", truth) == 1
    assert mathvista_score("1.45", truth) == 0
    assert mathvista_score("2.50", {**truth, "answer": "2.5"}) == 1
