"""Copies of a configuration with other values, checked like one that is read from a file.

pydantic's `model_copy` takes whatever it is given; these do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from nvlm.config.checks import check_config
from nvlm.config.schema import RunConfig, Section
from nvlm.config.wording import describe_all
from nvlm.errors import ConfigError

AnySection = TypeVar("AnySection", bound=Section)


def changed(
    config: RunConfig, changes: Mapping[str, Any], where: str = "configuration"
) -> RunConfig:
    """`config` with other values, the rules between its sections included.

    Args:
        changes: key with dots, such as `data.root` -> value: plain, or a section. What is below
            a key with a dot of its own (a source of a blend) is given with the whole blend.
        where: what messages name as the place of a problem.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type, or sections contradict each
            other.
    """
    copy = changed_section(config, changes, where)
    check_config(copy, where)
    return copy


def changed_section(
    section: AnySection, changes: Mapping[str, Any], where: str = "configuration"
) -> AnySection:
    """One section with other values, keys counted from it; the rest as in `changed`.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type.
    """
    values = section.model_dump()
    for key, value in changes.items():
        *parents, last = key.split(".")
        below = values
        for parent in parents:
            if not isinstance(below.get(parent), dict):
                below[parent] = {}
            below = below[parent]
        below[last] = value.model_dump() if isinstance(value, Section) else value
    try:
        return type(section).model_validate(values)
    except ValidationError as error:
        problems = describe_all(error, type(section), lambda location: "")
        raise ConfigError(*(f"{where}: {problem}" for problem in problems)) from None


def differences(before: Section, now: Section) -> Iterator[tuple[str, Any, Any]]:
    """Key with dots, value in `before`, value in `now`, where they differ; a blend is one value."""
    yield from _differences(before.model_dump(mode="json"), now.model_dump(mode="json"), "")


def _differences(before: Any, now: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*before, *now]):
        theirs, ours, where = before.get(key), now.get(key), f"{at}{key}"
        if isinstance(theirs, dict) and isinstance(ours, dict) and key != "blend":
            yield from _differences(theirs, ours, f"{where}.")
        elif theirs != ours:
            yield where, theirs, ours
