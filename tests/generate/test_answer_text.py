"""An answer's text, part by part, against the text of all its tokens at once."""

from __future__ import annotations

import random

import pytest
from helpers.paths import REPOSITORY

from nvlm.data.text.chat import open_tokenizer
from nvlm.generate.answer_text import AnswerText


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(str(REPOSITORY / "assets/tiny/qwen2"))


def parts_of(tokenizer, ids, stop=()) -> tuple[list[str], AnswerText]:
    """What each token gives out, and at last `finish`; nothing behind a stop text."""
    text = AnswerText(tokenizer, stop)
    parts = []
    for token in ids:
        parts.append(text.add(token))
        if text.has_stopped:
            break
    return [*parts, text.finish()], text


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


TEXTS = ["A plain answer.", "  spaces \n around  ", "Zürich 日本語 🙂🙃", "\n\n", "", "x"]


@pytest.mark.parametrize("text", TEXTS)
def test_parts_make_the_whole(text, tokenizer):
    ids = ids_of(tokenizer, text) + ids_of(tokenizer, "<|im_end|>")
    parts, _ = parts_of(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=True).strip() == text.strip()


def test_random_tokens_make_the_text_of_all_of_them(tokenizer):
    """Half characters in any order, and special tokens between them."""
    chance = random.Random(3)
    for _ in range(300):
        ids = [chance.randrange(len(tokenizer)) for _ in range(chance.randint(1, 12))]
        parts, _ = parts_of(tokenizer, ids)
        assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_half_a_character_is_held_back(tokenizer):
    ids = ids_of(tokenizer, "🙂")
    assert len(ids) > 1, "a character of several tokens"
    parts, _ = parts_of(tokenizer, [*ids_of(tokenizer, "ok "), *ids])
    assert parts[-2] == " 🙂" and "\ufffd" not in "".join(parts)


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        ("one STOP two", ["STOP"], "one"),
        ("one STOP two", ["TOP", "STOP"], "one"),  # the first in the text, not in the list
        ("one STO two", ["STOP"], "one STO two"),
        ("one STO", ["STOP"], "one STO"),
        ("aaab", ["aab"], "a"),
        ("first\n\nQ: next", ["\n\nQ"], "first"),
        ("\n\nQ: next", ["\n\nQ"], ""),
        ("\n\n answer", ["\n\nQ"], "answer"),
        ("say 日本語", ["本"], "say 日"),
        ("a. b. c.", ["."], "a"),
        ("<|im_end|>", ["<|"], ""),  # a special token has no text
        ("nothing", [], "nothing"),
    ],
)
def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(text, stop, expected, tokenizer):
    ids = ids_of(tokenizer, text)
    parts, state = parts_of(tokenizer, ids, stop)
    assert "".join(parts) == expected
    assert state.has_stopped == any(s in text for s in stop if text != "<|im_end|>")


def test_nothing_is_given_out_that_a_stop_text_takes_back(tokenizer):
    """Letter by letter, so that stop texts span tokens."""
    chance = random.Random(4)
    for _ in range(500):
        text = "".join(chance.choice("ab \n") for _ in range(14))
        stop = ["".join(chance.choice("ab \n") for _ in range(chance.randint(1, 4)))]
        ids = [token for letter in text for token in ids_of(tokenizer, letter)]
        parts, state = parts_of(tokenizer, ids, stop)
        kept = text.partition(stop[0])[0]
        assert "".join(parts) == kept.strip(), (text, stop)
        assert state.has_stopped == (stop[0] in text)
        # As early as can be: only what may be a stop text or spaces at the end is held.
        text_so_far, given = AnswerText(tokenizer, stop), ""
        for number, token in enumerate(ids, start=1):
            given += text_so_far.add(token)
            if text_so_far.has_stopped:
                break
            certain = text[: max(0, number - len(stop[0]) + 1)].strip()
            assert given.startswith(certain), (text, stop, given)
