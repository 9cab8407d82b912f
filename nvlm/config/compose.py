"""From YAML files and `a.b=c` overrides to a checked `RunConfig`.

A file may start with `base:`, a list of files (relative to it) that it is merged over, in order:
sections key by key, everything else as one value. docs/configuration.md has the rules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from nvlm.config.checks import check_config
from nvlm.config.paths import expand_path
from nvlm.config.schema import RunConfig, SourceConfig
from nvlm.config.shipped import find_run
from nvlm.config.values import PATH
from nvlm.config.wording import describe_all, shorten
from nvlm.config.yaml_file import Values, parse_yaml, read_yaml
from nvlm.errors import ConfigError
from nvlm.files import write_text
from nvlm.launch import rank_to_speak
from nvlm.printing import say

Key = tuple[str, ...]

MAX_NUM_FILES = 100
_MULTIPLIERS = ("lr_multipliers", "weight_decay_multipliers")


@dataclass(frozen=True)
class Layer:
    """What one file or one override says."""

    name: str  # as messages name it
    values: Values
    key: Key = ()  # the override's; () for a file


def load_config(
    path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None
) -> RunConfig:
    """Read `path`, merge its bases and `overrides`, and check the result.

    Where there is no such file, `path` may be a name of a run that comes with nvlm (shipped.py).

    Args:
        world_size: the number of processes, if the layout and the batch shall fit it.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has the wrong type, or
            sections contradict each other. All problems of the overrides, paths and values are in
            one error, in one line each, which names the file or override and the key.
    """
    path = find_run(expand_path(str(path)))
    problems: list[str] = []
    layers: list[Layer] = []
    _read_with_bases(path, (), layers, problems)
    given = _read_overrides(overrides, problems)
    layers += given
    values: Values = {}
    for layer in layers:
        values = _merge(values, layer.values, (), len(layer.key))

    def origin_of(location: list[str]) -> str:
        for layer in reversed(layers):
            if _says(layer.values, location):
                return "" if layer.name == str(path) else f" (in {layer.name})"
        return ""

    try:
        config = _validate(values, str(path), origin_of)
        check_config(config, str(path), world_size)
    except ConfigError as error:
        raise ConfigError(*problems, *error.args) from None
    if problems:
        raise ConfigError(*problems)
    for override in given:
        _say_what_was_undone(override, values)
    return config


def validate(values: Any, where: str) -> RunConfig:
    """Build a `RunConfig` from plain values. Rules between sections are not looked at.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    return _validate(values, where, lambda location: "")


def _validate(values: Any, where: str, origin_of: Any) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = describe_all(error, RunConfig, origin_of)
        raise ConfigError(*(f"{where}: {problem}" for problem in problems)) from None


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the resolved configuration as YAML, beside and renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_yaml(config))


def to_yaml(config: BaseModel) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_with_bases(
    path: Path, above: tuple[Path, ...], layers: list[Layer], problems: list[str]
) -> None:
    """Append the layers of `path`, its bases first; `above` are the files that led to it."""
    wanted_by = f" (a base of {above[-1]})" if above else ""
    own = read_yaml(path, wanted_by)
    if path.resolve() in [other.resolve() for other in above]:
        raise ConfigError(f"{path}: is its own base, through {' -> '.join(map(str, above))}")
    for base in _bases(own, path):
        if len(above) + len(layers) >= MAX_NUM_FILES:
            raise ConfigError(f"{path}: has more than {MAX_NUM_FILES} bases, their own counted")
        _read_with_bases(path.parent / base, (*above, path), layers, problems)
    problems += _resolve_paths(own, RunConfig, str(path), path.parent)
    layers.append(Layer(str(path), own))


def _bases(own: Values, path: Path) -> list[str]:
    """Take `base` out of a file's values."""
    given = own.pop("base", [])
    bases = given if isinstance(given, list) else [given]
    for base in bases:
        if not isinstance(base, str) or not base.isprintable():
            raise ConfigError(
                f"{path}: base: must be a file, or a list of files such as [a.yaml, b.yaml], found "
                f"{shorten(given)}"
            )
    try:
        return [expand_path(base) for base in bases]
    except ConfigError as error:
        raise ConfigError(f"{path}: base: {error}") from None


def _read_overrides(overrides: Sequence[str], problems: list[str]) -> list[Layer]:
    layers = []
    for text in overrides:
        try:
            layer = _read_override(text)
        except ConfigError as error:
            problems += error.args
            continue
        problems += _resolve_paths(layer.values, RunConfig, layer.name, None)
        layers.append(layer)
    return layers


def _read_override(text: str) -> Layer:
    name = f"override {text if len(text) < 100 and text.isprintable() else shorten(text)}"
    dotted, equals, written = text.partition("=")
    key = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(key):
        raise ConfigError(f"{name}: expected key=value, such as train.steps=100")
    try:
        value = _read_value(written.strip())
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    for part in reversed(key):
        value = {part: value}
    return Layer(name, value, key)


def _read_value(written: str) -> Any:
    """Lists, mappings and quoted texts are YAML; all else is the text as it stands, or null."""
    if written.startswith(("[", "{", "'", '"')):
        return parse_yaml(written)
    return None if written in ("", "null") else written


def _merge(below: Values, above: Values, at: Key, key_length: int) -> Values:
    """`above` over `below`. Sections merge; a map that the user names the keys of is one value.

    An override that names a key inside such a map (it is longer than the map's) changes that key.
    """
    merged = dict(below)
    for name, value in above.items():
        key, old = (*at, name), below.get(name)
        is_whole = _is_map(key) and len(key) >= key_length
        if isinstance(value, dict) and isinstance(old, dict) and not is_whole:
            value = _merge(old, value, key, key_length)
        merged[name] = value
    return merged


def _is_map(key: Key) -> bool:
    """Blends, at any depth (data.blend.NAME.blend), and multipliers: patterns or names are keys."""
    if key[:2] == ("data", "blend"):
        return len(key) % 2 == 0 and key[-1] == "blend"
    return key[:-1] == ("train", "optimizer") and key[-1] in _MULTIPLIERS


def _say_what_was_undone(override: Layer, values: Values) -> None:
    """Of overrides of one key the last counts, so that scripts can append; the others are named."""
    for key, value in _leaves(override.values, ()):
        found: Any = values
        for part in key:
            found = found.get(part) if isinstance(found, dict) else None
        if found != value and rank_to_speak() == 0:
            say(
                f"note: {override.name} does not count: a later one leaves {'.'.join(key)} as "
                f"{shorten(found)}",
                file=sys.stderr,
            )


def _leaves(values: Values, at: Key) -> Iterator[tuple[Key, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*at, name))
        elif value != {}:
            yield (*at, name), value


def _says(values: Any, location: list[str]) -> bool:
    for part in location:
        if isinstance(values, list):  # its items are its own
            return True
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _resolve_paths(
    values: Any, section: Any, name: str, folder: Path | None, at: str = ""
) -> Iterator[str]:
    """Make the paths below `section` mean the same wherever the configuration is read again.

    Args:
        folder: what `./` and `../` start from; None: the working directory.

    Yields:
        why a path has no meaning; `.` takes its place, so that the rest can be looked at.
    """
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        field = section.model_fields.get(key)
        if field is None:
            continue
        where = f"{at}{key}"
        if isinstance(value, str) and _is_path(field):
            try:
                values[key] = _resolve(value, folder)
            except ConfigError as error:
                yield f"{name}: {where}: {error}"
                values[key] = "."
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _resolve_paths(value, field.annotation, name, folder, f"{where}.")
        elif key == "blend" and isinstance(value, dict):
            for source, entry in value.items():
                yield from _resolve_paths(entry, SourceConfig, name, folder, f"{where}.{source}.")


def _resolve(text: str, folder: Path | None) -> str:
    path = expand_path(text)
    if not path.startswith(("./", "../")):
        return path
    path = os.path.normpath(path if folder is None else folder / path)
    # Written into a run folder's config.yaml, these would be read as something else there.
    return os.path.abspath(path) if path.startswith(("..", "~")) else path


def _is_path(field: Any) -> bool:
    return PATH in field.metadata or any(
        PATH in get_args(kind) for kind in get_args(field.annotation)
    )
