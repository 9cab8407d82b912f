"""Copies of a configuration with other values, checked like one that is read from a file.

pydantic's `model_copy` takes whatever it is given; these do not.
"""

from __future__ import annotations

from collections.abc import Mapping
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
