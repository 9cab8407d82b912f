"""Questions with options: which options there are, and which one is right."""

from __future__ import annotations

import ast
import json
import math
import re
import string
from typing import Any

from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.importers.fields import Fields, is_nothing
from nvlm.importers.spellings import (
    LETTERED_OPTION,
    NUMBERED_OPTION,
    SPELLINGS,
)

_LETTERS = string.ascii_uppercase
# `A. cat`, `(A) cat`, `A: cat`
_LETTERED = re.compile(r"\s*\(?([A-Za-z])(?:\)[.:]?|[.:])\s+(.*)", re.DOTALL)
_ONLY_LETTER = re.compile(r"\s*\(?([A-Za-z])[).:]*\s*")
_MAX_LITERAL = 100_000


def take_options(fields: Fields) -> tuple[str, list[str], list[str]]:
    """(name of their field, texts, labels) of a sample's options; ("", [], []) if it has none.

    Raises:
        SampleError: they are of no form that is known, or stand in several places.
    """
    columns = option_columns(fields)
    name, value = fields.take_one(SPELLINGS["options"])
    if name and columns:
        raise SampleError("fields", f"options in {name} and in {', '.join(columns)}; keep one")
    if columns:
        labels = list(_LETTERS[: len(columns)])
        texts = [_text(fields.take(column), column) for column in columns]
        return f"{columns[0]}, {columns[1]} and so on", texts, labels
    value = _read_list(value)
    if not name or is_nothing(value):
        return "", [], []
    if isinstance(value, dict):
        labels, values = _from_object(name, value)
    elif isinstance(value, list):
        labels, values = list(_LETTERS[: len(value)]), value
        if all(isinstance(item, dict) for item in value):
            labels, values = _from_objects(name, value)
    else:
        raise SampleError("fields", f"{name} is {shown(value)}, expected a list of texts")
    if not 2 <= len(values) <= len(_LETTERS):
        raise SampleError("fields", f"{name} is {shown(value)}, expected 2 to 26 texts")
    texts = [_text(item, name) for item in values]
    lettered = [_LETTERED.fullmatch(text) for text in texts]
    if all(m is not None and m[1].upper() == _LETTERS[i] for i, m in enumerate(lettered)):
        texts = [match[2] for match in lettered if match is not None]
    return name, texts, labels


def right_option(fields: Fields, name: str, texts: list[str], labels: list[str]) -> int:
    """The place of the right option, from 0; takes the fields that say it.

    Raises:
        SampleError: nothing says it, or not which one.
    """
    found: dict[str, int] = {}
    for field in fields.found((*SPELLINGS["right option"], *SPELLINGS["answer"])):
        if found and field not in ("answer", "answers", *SPELLINGS["right option"]):
            continue  # an explanation, or something else; `Fields.leave` decides
        full_name, value = fields.name(field), fields.take(field)
        is_place = field in SPELLINGS["right option"] and type(value) is int
        if is_place and 0 <= value < len(texts):
            found[full_name] = value
        else:
            found[full_name] = _find(value, full_name, name, texts, labels)
    if not found:
        raise SampleError(
            "fields", f"options in {name}, but no answer; beside them it has {fields.describe()}"
        )
    if len(set(found.values())) > 1:
        raise SampleError("fields", f"{' and '.join(found)} name different options of {name}")
    return next(iter(found.values()))


def option_columns(fields: Fields) -> list[str]:
    """The plain names of the fields with one option each, in order."""
    for pattern, first in ((LETTERED_OPTION, "a"), (NUMBERED_OPTION, None)):
        found: dict[str, str] = {}
        for field in fields:
            if (match := pattern.fullmatch(field)) is None:
                continue
            if match[1] in found:
                raise SampleError("fields", f"options in {found[match[1]]} and {field}; keep one")
            found[match[1]] = field
        if len(found) < 2 or (first and not {"a", "b"} <= set(found)):
            continue
        if first:
            wanted = list(_LETTERS.lower()[: len(found)])
        else:
            start = min(int(number) for number in found)
            wanted = [str(start + place) for place in range(len(found))]
        if set(found) != set(wanted):
            raise SampleError(
                "fields", f"options in {', '.join(sorted(found.values()))}: one is left out"
            )
        return [found[place] for place in wanted]
    return []


def _read_list(value: Any) -> Any:
    """A list that is written in a text, as JSON or as Python writes it."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            if len(value) <= _MAX_LITERAL:
                return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def _from_object(name: str, value: dict[Any, Any]) -> tuple[list[str], list[Any]]:
    """Of `{"A": TEXT, "B": TEXT}`, or `{"text": [TEXT, ...], "label": ["A", ...]}`."""
    if set(value) == {"text", "label"} and all(isinstance(v, list) for v in value.values()):
        if len(value["text"]) != len(value["label"]):
            raise SampleError("fields", f"{name} has more texts or labels: {shown(value)}")
        return [str(label) for label in value["label"]], value["text"]
    value = {key: text for key, text in value.items() if not is_nothing(text)}
    return [str(key) for key in value], list(value.values())


def _from_objects(name: str, value: list[dict[Any, Any]]) -> tuple[list[str], list[Any]]:
    """Of `[{"label": "A", "text": TEXT}, ...]`."""
    labels, texts = [], []
    for place, item in enumerate(value):
        fields = Fields(item, f"{name}.")
        text = fields.take_one(("text", "content", "value", "option"))[1]
        label = fields.take_one(("label", "id", "key", "letter"))[1]
        if text is None or list(fields):
            raise SampleError("fields", f"{name} has {shown(item)}, expected a text and its label")
        labels.append(_LETTERS[place % 26] if label is None else str(label))
        texts.append(text)
    return labels, texts


def _text(value: Any, name: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise SampleError("fields", f"{name} has the option {shown(value)}, expected text")
    return value.strip()


def _find(value: Any, field: str, name: str, texts: list[str], labels: list[str]) -> int:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    unclear = SampleError(
        "fields",
        f"{field} is {shown(value)}, which is not the letter, text or place (from 0) of an option "
        f"in {name}",
    )
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise unclear
    found: set[int] = set()
    if isinstance(value, int):
        if 0 <= value < len(texts):
            found.add(value)
        found |= {place for place, text in enumerate(texts) if text == str(value)}
        found |= {place for place, label in enumerate(labels) if label == str(value)}
    else:
        text = value.strip()
        found |= {place for place, option in enumerate(texts) if option == text}
        found |= {place for place, label in enumerate(labels) if label.lower() == text.lower()}
        if not found and (match := _ONLY_LETTER.fullmatch(text)) is not None:
            found |= {p for p, label in enumerate(labels) if label.lower() == match[1].lower()}
        if not found and (match := _LETTERED.fullmatch(text)) is not None:
            place = _LETTERS.find(match[1].upper())
            if 0 <= place < len(texts) and texts[place] == match[2].strip():
                found.add(place)
    if not found:
        raise unclear
    if len(found) > 1:
        options = " and ".join(labels[place] for place in sorted(found)[:2])
        raise SampleError(
            "fields", f"{field} is {shown(value)}, which may be {options} of {name}; write the "
            "options' letters, and the letter of the right one"
        )  # fmt: skip
    return found.pop()
