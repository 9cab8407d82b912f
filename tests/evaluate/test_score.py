"""Exact match and the majority-answer baseline, on hand-counted answers."""

import pytest

from nvlm.evaluate.score import is_correct, normalise_answer, score_tasks


@pytest.mark.parametrize(
    "text, normal",
    [
        ("  Yes. ", "yes"),
        ("A photo of a cat.", "a photo of a cat"),
        ("A photo of a cat .", "a photo of a cat"),
        ("7", "7"),
        ("...", ".."),  # one trailing period only
        ("3.5", "3.5"),
        ("", ""),
    ],
)
def test_normalise_answer(text, normal):
    assert normalise_answer(text) == normal


def test_only_the_whole_answer_counts():
    assert is_correct("Tuesday.", " tuesday")
    assert not is_correct("17", "7")
    assert not is_correct("the answer is 7", "7")
    assert not is_correct("", "7")


def _row(task: str, truth: str, answer: str) -> dict:
    return {"task": task, "truth": truth, "answer": answer}


def test_scores_and_baseline_counted_by_hand():
    rows = [
        _row("digit", "7", "7"),
        _row("digit", "7.", "1"),
        _row("digit", "3", "3"),
        _row("digit", "1", "1."),
        _row("caption", "A cat.", "a dog"),
        _row("caption", "A dog.", "a dog"),
    ]
    caption, digit = score_tasks(rows)
    assert (caption.task, caption.num_samples, caption.num_correct) == ("caption", 2, 1)
    # "a cat" and "a dog" are equally common: one right answer whichever is always given.
    assert (caption.majority_answer, caption.majority) == ("a cat", 0.5)
    assert caption.points_over_majority == 0
    assert (digit.num_samples, digit.num_correct, digit.majority_answer) == (4, 3, "7")
    assert (digit.accuracy, digit.majority, digit.points_over_majority) == (0.75, 0.5, 25.0)


def test_no_answers_no_scores():
    assert score_tasks([]) == []
