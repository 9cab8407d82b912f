"""What pydantic finds wrong with values, in words for users."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nvlm.config.section_kinds import item_kinds, kinds_of, sections_of

# Longer values and names are cut in messages.
MAX_LENGTH = 60
# More are counted only: a file of another kind has as many as it has lines.
MAX_NUM_PROBLEMS = 20

_NUMBER = re.compile(r"[-+]?(?:\.?\d[\d_.]*(?:[eE][-+]?\d+)?|\.(?:inf|nan))", re.ASCII)
_EXPECTED = {
    "string_type": "must be a text",
    "string_unicode": "must be a text of whole Unicode characters",
    "list_type": "must be a list, such as [a, b]",
    "tuple_type": "must be a list, such as [a, b]",
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
    tagged = [str(part) for part in problem["loc"]]
    location = _without_tags(tagged, schema)
    key = ".".join(part if len(part) <= MAX_LENGTH else shorten(part)[1:-1] for part in location)
    key = (key if key.isprintable() else ascii(key)[1:-1]) or "the configuration"
    kind, origin = problem["type"], origin_of(location)
    if kind == "extra_forbidden":
        return f"unknown key '{key}'{_did_you_mean(location, tagged, schema)}{origin}"
    if kind == "missing":
        return f"missing key '{key}'"
    if kind == "unknown_kind":
        field = _field_of(location, schema) or _field_of(location[:-1], schema)
        kinds = kinds_of(field) or item_kinds(field)
        found = problem["input"]
        found = found.get("kind") if isinstance(found, dict) else found
        return f"{key}.kind: must be one of {', '.join(kinds)}, found {shorten(found)}{origin}"
    if kind == "literal_error":
        expected = f"must be one of {problem['ctx']['expected']}".replace("'", "")
        expected = expected.replace(" or ", ", ")
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:
        expected = problem["msg"]
    return f"{key}: {expected}, found {shorten(problem['input'])}{origin}"


def _without_tags(location: list[str], schema: type[BaseModel]) -> list[str]:
    """Without what the schema puts after a blend's names and a section of several kinds: which of
    them it takes it for."""
    parts = iter(location)
    kept: list[str] = []
    for part in parts:
        if part == "[key]":  # about the name itself
            continue
        kept.append(part)
        if part == "blend":
            kept += itertools.islice(parts, 1)
            next(parts, None)
        elif kinds_of(_field_of(kept, schema)) or item_kinds(_field_of(kept[:-1], schema)):
            next(parts, None)
    return kept


def _field_of(location: list[str], schema: Any) -> FieldInfo | None:
    """The field that a key names; of sections of several kinds, in the first that has it."""
    sections, field = [schema], None
    for part in location:
        field = next((s.model_fields[part] for s in sections if part in s.model_fields), None)
        if field is None:
            return None
        sections = sections_of(field)
    return field


def _did_you_mean(location: list[str], tagged: list[str], schema: type[BaseModel]) -> str:
    """The closest key of the same section, or the section that has a key of this name.

    Args:
        tagged: `location` with the kinds of sections of which there are several.
    """
    from nvlm.config.schema import SourceConfig

    section: Any = schema
    parts = iter(tagged[:-1])
    for part in parts:
        field = section.model_fields.get(part)
        below = sections_of(field) if field else []
        if kinds := item_kinds(field):  # behind the number of the item
            next(parts, None)
            section = kinds[next(parts)]
            continue
        if part == "blend" and next(parts, None) is not None:
            below = [SourceConfig]
            next(parts, None)
        if not below:
            return ""
        kinds = kinds_of(field)
        section = kinds[next(parts)] if kinds else below[0]
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
        if not (below := sections_of(field)):
            yield prefix + name
        for one in below:
            yield from _all_keys(one, f"{prefix}{name}.")
