"""MathVista's accuracy, with the answer found by rules.

The benchmark (Lu et al., "MathVista", ICLR 2024) has a language model extract the answer from what
was said, then compares it: a choice by its letter or text, a whole number, a number to as many
decimals as the question asks for, or a list. Here the extraction is by rules:

- multiple choice: the text of a choice; else the last letter in brackets, the last one behind
  `answer`, `option` or `choice`, the one that `options.named_option` reads; else the choice whose
  text is the last to be mentioned
- numbers: the whole answer, if it is one; else the first number behind the last `answer is`,
  `answer:` or `=`; else the last number; without digits the last of the words `zero` to `twenty`.
  `1,000`, `$5`, `5%`, `3/4` and `\\frac{3}{4}` are numbers
- lists: the last one in square brackets, else the numbers that there are, which must be all

Known differences from the official program: an answer that names no choice is wrong, where there
the choice with the fewest edits is taken; 3.7 is not the whole number 3; 1.50 and 1.5 are one
number; and whatever a language model would have found in prose that these rules do not
(benchmarks/mathvista_extraction.py measures how often).

NVLM's released scripts read choices by MMMU's rules, cut numbers to two decimals instead of
rounding them, compare texts (so that 3 and 3.0 are equal, 2.5 and 2.50 are not), take a number out
of prose only behind `answer is`, and end with an error on an empty answer.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nvlm.evaluate.scorers.options import LETTERS, named_option

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    # A minus sign behind a word or a number is a hyphen.
    r"(?P<sign>(?<![\w.)])[-\u2212]\s?)?"
    r"(?:\\d?frac\{\s*(?P<above>\d+)\s*\}\{\s*(?P<below>\d+)\s*\}"
    rf"|(?P<number>(?<![\w.])(?:{_DECIMAL})(?:[eE][+-]?\d+)?)(?:\s?/\s?(?P<over>\d+(?![\d.])))?)"
)
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_BEFORE_ANSWER = re.compile(r"answer\s+is|answer\s*:|=", re.IGNORECASE)
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")
_BEHIND_WORD = re.compile(r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*([A-Z])\b")
_LIST = re.compile(r"\[[^\[\]]*\]")


def mathvista_score(answer: str, truth: Mapping[str, Any]) -> float:
    """1 if `answer` is right, else 0.

    Args:
        truth: as published: `answer`, `answer_type` (`integer`, `float`, `list` or `text`),
            `precision` (decimals of a `float`) and `choices` (texts; none: free-form).
    """
    expected = truth["answer"]
    if choices := truth.get("choices"):
        return float(_chosen_text(answer, choices) == expected)
    if truth["answer_type"] == "list":
        return float(_is_list(answer, expected))
    if truth["answer_type"] == "text":
        return float(answer.strip().lower() == expected.strip().lower())
    value = said_number(answer)
    if value is None:
        return 0.0
    if truth["answer_type"] == "float":
        value = round(value, int(truth["precision"] or 0))
    return float(value == float(expected))


def said_number(answer: str) -> float | None:
    """The number that an answer gives; None: it has none."""
    try:
        value = float(answer)
        return value if math.isfinite(value) else None
    except ValueError:
        pass
    marks = list(_BEFORE_ANSWER.finditer(answer))
    if marks and (numbers := _numbers_in(answer[marks[-1].end() :])):
        return numbers[0]
    numbers = _numbers_in(answer)
    if numbers:
        return numbers[-1]
    known: list[str] = [*_NUMBER_WORDS.split()]
    words = [word for word in re.findall(r"[a-z]+", answer.lower()) if word in known]
    return float(known.index(words[-1])) if words else None


def _chosen_text(answer: str, choices: Sequence[str]) -> str | None:
    answer = answer.strip()
    if answer in choices:
        return answer
    letters = LETTERS[: len(choices)]
    for form in (_IN_BRACKETS, _BEHIND_WORD):
        if found := [letter for letter in form.findall(answer) if letter in letters]:
            return choices[letters.index(found[-1])]
    if letter := named_option(answer, choices):
        return choices[letters.index(letter)]
    # The end of the last mention; of two that end together the longer, such as `dark red`.
    ends = {choice: (_last_end(choice, answer), len(choice)) for choice in choices}
    last = max(choices, key=ends.__getitem__)
    return last if ends[last][0] >= 0 else None


def _last_end(text: str, answer: str) -> int:
    """Where the last mention of `text`, as whole words, ends; -1: there is none."""
    words = rf"(?<!\w){re.escape(text.strip().lower())}(?!\w)"
    return max((found.end() for found in re.finditer(words, answer.lower())), default=-1)


def _is_list(answer: str, expected: str) -> bool:
    lists = _LIST.findall(answer)
    given = _list_of(lists[-1]) if lists else _numbers_in(answer)
    return given is not None and given == _list_of(expected)


def _list_of(text: str) -> list[Any] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _numbers_in(text: str) -> list[float]:
    return [value for found in _NUMBER.finditer(text) if (value := _value(found)) is not None]


def _value(found: re.Match[str]) -> float | None:
    above = float((found["number"] or found["above"]).replace(",", ""))
    below = float(found["over"] or found["below"] or 1)
    if not below or not math.isfinite(above) or not math.isfinite(below):
        return None
    return (-1 if found["sign"] else 1) * above / below
