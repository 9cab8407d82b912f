"""Exact match and the majority-answer baseline, on hand-counted answers."""

import pytest

from nvlm.evaluate.score import Truth, normalise_answer, score_answer, score_tasks, vqa_accuracy


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
    assert score_answer("Tuesday.", Truth([" tuesday"])) == 1
    assert score_answer("17", Truth(["7"])) == 0
    assert score_answer("the answer is 7", Truth(["7"])) == 0
    assert score_answer("", Truth(["7"])) == 0


@pytest.mark.parametrize("answer, score", [("11", 1), ("Eleven.", 1), ("XI", 1), ("1", 0), ("", 0)])
def test_any_accepted_answer_counts(answer, score):
    assert score_answer(answer, Truth(["11", "eleven", "xi"])) == score


@pytest.mark.parametrize(
    "answer, right",
    [
        *(
            (text, True)
            for text in ("B", "b", "B.", "(B)", "B)", "b:", " (b). ", "A cat", "a cat.")
        ),
        *((text, True) for text in ("B. a cat", "(B) A cat.", "B: a cat", "B.a cat")),
        *((text, False) for text in ("A", "C", "Z", "", "cat", "B. a dog", "A. a cat", "Ba cat")),
        ("a dog", False),  # appears twice, so names no option
        ("B, I think", False),
    ],
)
def test_a_choice_is_named_by_letter_or_text(answer, right):
    truth = Truth(["B"], options=["a dog", "a cat", "a dog"])
    assert score_answer(answer, truth) == right


def test_a_letter_alone_is_a_letter():
    assert score_answer("A", Truth(["A"], options=["B", "A"])) == 1
    assert score_answer("A", Truth(["B"], options=["B", "A"])) == 0
    # But for one that no option has.
    assert score_answer("y", Truth(["B"], options=["x", "y"])) == 1


def test_vqa_accuracy_is_the_mean_over_nine_annotators():
    """Against the definition, one set of nine after the other."""
    for agreeing in range(11):
        given = [True] * agreeing + [False] * (10 - agreeing)
        sets = [sum(given[:left_out] + given[left_out + 1 :]) for left_out in range(10)]
        assert vqa_accuracy(agreeing) == pytest.approx(sum(min(n / 3, 1) for n in sets) / 10)
    truth = Truth(["yes", "no", "Yes.", "maybe"], [1, 6, 2, 1])
    # "yes" and "Yes." are one answer of three people.
    assert [score_answer(a, truth) for a in ("YES", "no", "maybe", "perhaps")] == [0.9, 1, 0.3, 0]


def test_the_baseline_is_the_answer_that_would_score_most():
    rows = [
        {"task": "t", "truth": ["a", "b"], "answer": "b", "source": "one"},
        {"task": "t", "truth": ["b"], "answer": "x", "source": "one"},
        {"task": "t", "truth": ["c"], "answer": "c", "source": "two"},
    ]
    (score,) = score_tasks(rows)
    assert (score.num_correct, score.majority_answer, score.num_majority) == (2, "b", 2)
    assert {name: part.num_correct for name, part in score.by_source.items()} == {
        "one": 1,
        "two": 1,
    }
    row = {"task": "v", "truth": ["yes", "no"], "truth_counts": [3, 7], "answer": "yes"}
    (score,) = score_tasks([row, row | {"truth_counts": [9, 1], "answer": "no"}])
    assert (score.num_correct, score.metrics) == (pytest.approx(0.9 + 0.3), ("vqa_accuracy",))
    assert (score.majority_answer, score.num_majority) == ("yes", pytest.approx(1.9))
    row = {"task": "m", "truth": ["B"], "options": ["x", "y"], "answer": "y"}
    (score,) = score_tasks([row, row | {"truth": ["A"]}, row])
    assert (score.num_correct, score.majority_answer, score.num_majority) == (2, "b", 2)


def _row(task: str, truth: str, answer: str) -> dict:
    return {"task": task, "truth": [truth], "answer": answer}


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
