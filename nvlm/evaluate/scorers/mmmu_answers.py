"""MMMU's reading of answers: the letter of a multiple choice, and open answers.

The rules are those of the benchmark's own evaluation (Yue et al., "MMMU", CVPR 2024;
github.com/MMMU-Benchmark/MMMU, mmmu/utils/eval_utils.py), which NVLM's released scripts call.

One known difference, on purpose: where these rules find no letter, as in `B. red`, the reference
draws one at random. Here `options.named_option` reads such answers; what it cannot read is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nvlm.evaluate.scorers.options import LETTERS, named_option

# Taken off both ends one after the other, each once: `B.'` keeps its period.
_END_MARKS = ",.!?;:'"
# An answer of more words may name an option by its text.
_NUM_WORDS_OF_LETTERS = 5

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NO_ANSWER = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,000
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def chosen_letter(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names; None: none.

    A letter in brackets counts first, then one between spaces, then, in an answer of more than five
    words, an option's text. Of several the last counts.
    """
    return _letter_by_mmmu(answer, options) or named_option(answer, options)


def open_score(answer: str, truths: Sequence[str]) -> float:
    """1 if an open answer has one of `truths`: a number as a number, to two decimals; a text as a
    part of what is said behind words such as `is` and `answer`.
    """
    known = [value for truth in truths for value in _values(truth)]
    texts = [value for value in known if isinstance(value, str)]
    for said in _said(answer):
        if isinstance(said, str):
            if any(text in said for text in texts):
                return 1.0
        elif said in known:
            return 1.0
    return 0.0


def _letter_by_mmmu(answer: str, options: Sequence[str]) -> str | None:
    for mark in _END_MARKS:
        answer = answer.strip(mark)
    answer = f" {answer} "
    letters = LETTERS[: len(options)]
    for form in ("({})", " {} "):
        places = {letter: answer.rfind(form.format(letter)) for letter in letters}
        if last := _last(places):
            return last
    if len(answer.split()) <= _NUM_WORDS_OF_LETTERS:
        return None
    lower = answer.lower()
    return _last({a: lower.rfind(text.lower()) for a, text in zip(letters, options, strict=True)})


def _last(places: dict[str, int]) -> str | None:
    """Whose place is the last one; of equals the first. None: none has a place."""
    best = max(places, key=places.__getitem__, default=None)
    return best if best is not None and places[best] >= 0 else None


def _said(answer: str) -> list[str | float]:
    """All that an answer may be taken for: its key phrases, and the numbers in them."""
    phrases = _key_phrases(answer.strip().strip(".").lower())
    numbers = [found for phrase in phrases for form in _NUMBERS for found in form.findall(phrase)]
    return [value for text in [*phrases, *numbers] for value in _values(text)]


def _key_phrases(answer: str) -> list[str]:
    """Of each line the shortest end behind a key word; without any, the whole answer."""
    lines = answer.split("\n")
    phrases = []
    for number, line in enumerate(lines):
        keys = (*_KEYS, "=") if number == len(lines) - 1 else _KEYS
        ends = [line.split(key)[-1].strip() for key in keys if key in line]
        # The reference takes the next end for an empty one, of whatever length.
        shortest = ""
        for end in ends:
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in _NO_ANSWER:
            phrases.append(shortest)
    return phrases or [answer]


def _values(text: str) -> list[str | float]:
    """A text as it is compared: a number to two decimals, or lower case. A single letter counts
    beside a space only.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
