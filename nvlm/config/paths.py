"""Paths as users write them: `~`, `~name`, `$NAME` and `${NAME}` mean what they mean to a shell."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nvlm.config.wording import shorten
from nvlm.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def expand_path(text: str) -> str:
    """`text` with the home folder and environment variables put in.

    Raises:
        ConfigError: a variable is not set, or there is no such user. Says which, not in which key.
    """
    expanded = _VARIABLE.sub(_value_of, text)
    if left := _VARIABLE.search(expanded):
        raise ConfigError(f"{shorten(text)}: still has {left[0]} when its variables are put in")
    if expanded.startswith("~"):
        user, slash, rest = expanded.partition("/")
        home = os.path.expanduser(user)
        if home == user or not home:
            whose = f"user {shorten(user[1:])}" if user[1:] else "you: HOME is not set"
            raise ConfigError(
                f"{shorten(text)}: no home folder of {whose}; a name that begins with ~ is written "
                f"./{user}"
            )
        expanded = home + slash + rest
    return expanded


def user_path(text: str) -> Path:
    """A path given on the command line."""
    return Path(expand_path(text))


def _value_of(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    value = os.environ.get(name)
    if value:
        return value
    if match[2] is not None and "." in name:
        raise ConfigError(
            f"{shorten(match.string)}: {match[0]} is not an environment variable; values of "
            "other keys are not put in: write the value"
        )
    raise ConfigError(
        f"{shorten(match.string)}: the environment variable {name or '(without a name)'} is not "
        f"{'set' if value is None else 'filled'}"
    )
