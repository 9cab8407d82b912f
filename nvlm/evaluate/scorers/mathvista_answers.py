"""MathVista's accuracy, with the answer found by rules.

The benchmark (Lu et al., "MathVista", ICLR 2024) has a language model extract the answer from what
was said, then compares it: a choice by its letter or text, a whole number, a number to as many
decimals as the question asks for, or a list. Here the extraction is by rules:

- multiple choice: the text of a choice, else the letter as MMMU reads it (mmmu_answers.py),
  as in NVLM's released scripts
- numbers: the whole answer, if it is one; else the first number behind the last `answer is`,
  `answer:` or `=`; else the last number. `1,000`, `$5`, `5%`, `3/4` and `\\frac{3}{4}` are numbers
- lists: the last one in square brackets, else the numbers that there are, which must be all

Known differences from the official program: an answer that names no choice is wrong, where there
the choice with the fewest edits is taken; 3.7 is not the whole number 3; 1.50 and 1.5 are one
number; and whatever a language model would have found in prose that these rules do not.

NVLM's released scripts cut numbers to two decimals instead of rounding them, compare texts (so that
3 and 3.0 are equal, 2.5 and 2.50 are not), take a number out of prose only behind `answer is`, and
end with an error on an empty answer.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nvlm.evaluate.scorers.mmmu_answers import chosen_letter
from nvlm.evaluate.scorers.options import LETTERS

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    # A minus sign behind a word or a number is a hyphen.
    r"(?P<sign>(?<![\w.)])[-\u2212]\s?)?"
    r"(?:\\d?frac\{\s*(?P<above>\d+)\s*\}\{\s*(?P<below>\d+)\s*\}"
    rf"|(?P<number>(?<![\w.])(?:{_DECIMAL})(?:[eE][+-]?\d+)?)(?:\s?/\s?(?P<over>\d+(?![\d.])))?)"
)
_BEFORE_ANSWER = re.compile(r"answer\s+is|answer\s*:|=", re.IGNORECASE)
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
    return numbers[-1] if numbers else None


def _chosen_text(answer: str, choices: Sequence[str]) -> str | None:
    if answer.strip() in choices:
        return answer.strip()
    letter = chosen_letter(answer.strip(), choices)
    return choices[LETTERS.index(letter)] if letter else None


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
