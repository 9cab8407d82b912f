"""Token-by-token comparison finds a single differing token, in the prompt or in the answer."""

import pytest

from nvlm.errors import DataError
from nvlm.evaluate.agreement import compare_answers


def _row(number: int, prompt=(1, 2), answer=(3, 4)) -> dict:
    return {
        "source": "digits",
        "sample_id": f"{number:03d}",
        "prompt_token_ids": list(prompt),
        "answer_token_ids": list(answer),
    }


def test_equal_answers_agree_in_any_order():
    rows = [_row(n) for n in range(4)]
    agreement = compare_answers(rows, rows[::-1])
    assert (agreement.num_samples, agreement.num_equal, agreement.num_tokens) == (4, 4, 8)
    assert agreement.is_complete


def test_one_token_is_found():
    ours = [_row(n) for n in range(4)]
    theirs = [
        _row(0),
        _row(1, answer=(3, 5)),
        _row(2, prompt=(1, 9)),
        _row(3, prompt=(9, 2), answer=(3,)),
    ]
    agreement = compare_answers(ours, theirs)
    assert agreement.different_answers == [("digits", "001"), ("digits", "003")]
    assert agreement.different_prompts == [("digits", "002"), ("digits", "003")]
    assert agreement.num_equal == 1
    assert not agreement.is_complete


def test_nothing_compared_is_no_agreement():
    assert not compare_answers([], []).is_complete


def test_other_questions_are_refused():
    with pytest.raises(DataError, match="1 of 2 samples were answered by one"):
        compare_answers([_row(0), _row(1)], [_row(0)])
    with pytest.raises(DataError, match="answered twice"):
        compare_answers([_row(0), _row(0)], [_row(0)])
