"""What pydantic finds wrong with values, in words for users."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

# Longer values and names are cut in messages.
MAX_LENGTH = 60
# More are counted only: a file of another kind has as many as it has lines.
MAX_NUM_PROBLEMS = 20

_NUMBER = re.compile(r"[-+]?(?:\.?\d[\d_.]*(?:[eE][-+]?\d+)?|\.(?:inf|nan))", re.ASCII)
_EXPECTED = {
    "string_type": "must be a text",
    "string_unicode": "must be a text of whole Unicode characters",
    "list_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping, such as {a: 1}",
    "model_type": "must be a mapping of settings, such as {a: 1}",
    "model_attributes_type": "must be a mapping of settings, such as {a: 1}",
    "too_short": "must not be empty",
}


def shorten(value: object) -> str:
    """A value as a message shows it: on one line, without control characters, cut when long."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, str) and len(value) <= MAX_LENGTH and _NUMBER.fullmatch(value):
        return value
    if isinstance(value, str):
        value = value[: 10 * MAX_LENGTH]  # repr() of all of a long text is not needed
    shown = ascii(value) if not str(value).isprintable() else repr(value)
    return shown if len(shown) <= MAX_LENGTH + 2 else f"{shown[: MAX_LENGTH - 20]}...{shown[-17:]}"


def describe_all(error: ValidationError, schema: type[BaseModel], origin_of: Any) -> list[str]:
    """Every problem of `error`, each in one line.

    Args:
        origin_of: from a key's parts to words that say where its value was written.
    """
    problems = error.errors(include_url=False)
    lines = [_describe(problem, schema, origin_of) for problem in problems[:MAX_NUM_PROBLEMS]]
    if len(problems) > MAX_NUM_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_NUM_PROBLEMS} more")
    return lines


def _describe(problem: Any, schema: type[BaseModel], origin_of: Any) -> str:
    location = _without_tags([str(part) for part in problem["loc"]])
    key = ".".join(part if len(part) <= MAX_LENGTH else shorten(part)[1:-1] for part in location)
    key = (key if key.isprintable() else ascii(key)[1:-1]) or "the configuration"
    kind, origin = problem["type"], origin_of(location)
    if kind == "extra_forbidden":
        return f"unknown key '{key}'{_did_you_mean(location, schema)}{origin}"
    if kind == "missing":
        return f"missing key '{key}'"
    if kind == "literal_error":
        expected = f"must be one of {problem['ctx']['expected']}".replace("'", "")
        expected = expected.replace(" or ", ", ")
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:
        expected = problem["msg"]
    return f"{key}: {expected}, found {shorten(problem['input'])}{origin}"


def _without_tags(location: list[str]) -> list[str]:
    """Without what the schema puts after a blend's names: which kind of entry it takes it for."""
    parts = iter(location)
    kept = []
    for part in parts:
        if part == "[key]":  # about the name itself
            continue
        kept.append(part)
        if part == "blend":
            kept += itertools.islice(parts, 1)
            next(parts, None)
    return kept


def _did_you_mean(location: list[str], schema: type[BaseModel]) -> str:
    """The closest key of the same section, or the section that has a key of this name."""
    from nvlm.config.schema import SourceConfig

    section: Any = schema
    parts = iter(location[:-1])
    for part in parts:
        field = section.model_fields.get(part)
        section = field.annotation if field else None
        if part == "blend" and next(parts, None) is not None:
            section = SourceConfig
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return ""
    last = location[-1]
    if last.partition("[")[0] == "freeze" and "freeze" in section.model_fields:
        return f"; a list is given whole: {'.'.join([*location[:-1], 'freeze'])}=[...]"
    close = difflib.get_close_matches(last[:MAX_LENGTH], section.model_fields, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{'.'.join([*location[:-1], close[0]])}'?"
    homes = [key for key in _all_keys(schema) if key.rpartition(".")[2] == last]
    if homes:
        return f"; did you mean '{homes[0]}'?"
    where = f"'{'.'.join(location[:-1])}'" if location[:-1] else "the top level"
    return f"; {where} has {', '.join(section.model_fields)}"


def _all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name
