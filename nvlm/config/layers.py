"""What files and `a.b=c` overrides say, each a layer over those before it.

A file may start with `base:`, a list of files (relative to it) that it is merged over, in order:
sections key by key, everything else as one value. A file may have `stages:`, each with bases and
settings of its own: see stage_file.py. docs/configuration.md has the rules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from nvlm.config.paths import expand_path
from nvlm.config.schema import RunConfig, SourceConfig
from nvlm.config.section_kinds import default_kind, kinds_of, section_for
from nvlm.config.values import PATH
from nvlm.config.wording import shorten
from nvlm.config.yaml_file import Values, parse_yaml, read_yaml
from nvlm.errors import ConfigError

Key = tuple[str, ...]

STAGES = "stages"
MAX_NUM_FILES = 100
# Also a folder, and between the dots of an override.
STAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_MULTIPLIERS = ("lr_multipliers", "weight_decay_multipliers")


@dataclass(frozen=True)
class Layer:
    """What one file or one override says."""

    name: str  # as messages name it
    values: Values
    key: Key = ()  # the override's; () for a file
    stage: str | None = None  # the only stage that it is about; None: all that there are
    is_base: bool = False  # of the stage


def read_layers(path: Path, problems: list[str]) -> list[Layer]:
    """The layers of the file `path`, its bases first, the file itself last.

    What the file says for all its stages goes over the bases of each stage, and what it says for a
    stage over that.

    Args:
        problems: what is wrong with paths is added to it.

    Raises:
        ConfigError: a file is missing or not YAML, or its bases or stages are none.
    """
    layers: list[Layer] = []
    _read_with_bases(path, (), layers, problems)
    return layers


def _read_with_bases(
    path: Path, above: tuple[Path, ...], layers: list[Layer], problems: list[str]
) -> None:
    """Append the layers of `path`; `above` are the files that led to it."""
    wanted_by = f" (a base of {above[-1]})" if above else ""
    own = read_yaml(path, wanted_by)
    if path.resolve() in [other.resolve() for other in above]:
        raise ConfigError(f"{path}: is its own base, through {' -> '.join(map(str, above))}")
    above = (*above, path)
    _read_bases(own, path, f"{path}", above, layers, problems)
    own_stages: list[Layer] = []
    for name, values in _take_stages(own, f"{path}: ").items():
        where = f"{path}: {STAGES}.{name}"
        below: list[Layer] = []
        _read_bases(values, path, where, above, below, problems)
        if any(layer.stage for layer in below):
            raise ConfigError(
                f"{where}: base: a stage is built on files of runs, and one of these has stages"
            )
        layers += [replace(layer, stage=name, is_base=True) for layer in below]
        problems += _resolve_paths(values, RunConfig, where, path.parent)
        own_stages.append(Layer(str(path), values, stage=name))
        if len(above) + len(layers) >= MAX_NUM_FILES:
            raise ConfigError(f"{path}: has more than {MAX_NUM_FILES} bases, their own counted")
    problems += _resolve_paths(own, RunConfig, str(path), path.parent)
    layers += [Layer(str(path), own), *own_stages]


def _read_bases(
    values: Values,
    path: Path,
    where: str,
    above: tuple[Path, ...],
    layers: list[Layer],
    problems: list[str],
) -> None:
    for base in _bases(values, where):
        if len(above) + len(layers) > MAX_NUM_FILES:
            raise ConfigError(f"{path}: has more than {MAX_NUM_FILES} bases, their own counted")
        _read_with_bases(path.parent / base, above, layers, problems)


def _bases(own: Values, where: str) -> list[str]:
    """Take `base` out of a file's or a stage's values."""
    given = own.pop("base", [])
    bases = given if isinstance(given, list) else [given]
    for base in bases:
        if not isinstance(base, str) or not base.isprintable():
            raise ConfigError(
                f"{where}: base: must be a file, or a list of files such as [a.yaml, b.yaml], "
                f"found {shorten(given)}"
            )
    try:
        return [expand_path(base) for base in bases]
    except ConfigError as error:
        raise ConfigError(f"{where}: base: {error}") from None


def _take_stages(own: Values, where: str) -> dict[str, Values]:
    """Take `stages` out of the values of a file or an override."""
    if STAGES not in own:
        return {}
    given = own.pop(STAGES)
    if not isinstance(given, dict) or not given:
        raise ConfigError(
            f"{where}{STAGES}: must be a mapping of stages in their order, such as "
            f"{{pretrain: {{base: pretrain.yaml}}}}, found {shorten(given)}"
        )
    for name, values in given.items():
        if not STAGE_NAME.fullmatch(name):
            raise ConfigError(
                f"{where}{STAGES}: {shorten(name)} is no name of a stage, which is that of its "
                "folder too: letters, digits, _ and -"
            )
        if values is not None and not isinstance(values, dict):
            raise ConfigError(
                f"{where}{STAGES}.{name}: must be a mapping of settings, such as {{base: a.yaml}}, "
                f"found {shorten(values)}"
            )
    return {name: values or {} for name, values in given.items()}


def read_overrides(
    overrides: Sequence[str], stages: Sequence[str], problems: list[str]
) -> list[Layer]:
    """The layers of overrides, in their order; what is wrong with one is added to `problems`.

    Args:
        stages: those of the file, which an override may name.
    """
    layers: list[Layer] = []
    for text in overrides:
        try:
            found = _for_stages(_read_override(text), stages)
        except ConfigError as error:
            problems += error.args
            continue
        for layer in found:
            problems += _resolve_paths(layer.values, RunConfig, layer.name, None)
        layers += found
    return layers


def _for_stages(layer: Layer, stages: Sequence[str]) -> list[Layer]:
    """An override of `stages...` as one of each stage that it names."""
    if STAGES not in layer.values:
        return [layer]
    if not stages:
        raise ConfigError(f"{layer.name}: the file has no {STAGES}")
    named = _take_stages(layer.values, f"{layer.name}: ")
    for name in named:
        if name not in stages:
            raise ConfigError(f"{layer.name}: no stage {name!r}; there are {', '.join(stages)}")
    return [Layer(layer.name, values, layer.key[2:], name) for name, values in named.items()]


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


def merge(layers: Sequence[Layer]) -> Values:
    """One layer over the other."""
    values: Values = {}
    for layer in layers:
        values = _merge(values, layer.values, (), len(layer.key))
    return values


def _merge(below: Values, above: Values, at: Key, key_length: int) -> Values:
    """`above` over `below`. Sections merge; a map that the user names the keys of is one value.

    An override that names a key inside such a map (it is longer than the map's) changes that key.
    """
    merged = dict(below)
    for name, value in above.items():
        key, old = (*at, name), below.get(name)
        is_whole = _is_map(key) and len(key) >= key_length
        if isinstance(value, dict) and isinstance(old, dict) and not is_whole:
            value = _merge(_of_its_kind(old, value, key), value, key, key_length)
        merged[name] = value
    return merged


def _of_its_kind(below: Values, above: Values, key: Key) -> Values:
    """What is kept of a section under one that says of what `kind` it is: all, or nothing."""
    field: Any = None
    section: Any = RunConfig
    for part in key:
        field = section.model_fields.get(part) if section else None
        section = section_for(field, {}) if field else None
    if "kind" not in above or field is None or not kinds_of(field):
        return below
    return below if below.get("kind", default_kind(field)) == above["kind"] else {}


def _is_map(key: Key) -> bool:
    """Blends, at any depth (data.blend.NAME.blend), multipliers and adapters: names are keys."""
    if key[:2] == ("data", "blend"):
        return len(key) % 2 == 0 and key[-1] == "blend"
    if key == ("stage", "adapters"):
        return True
    return key[:-1] == ("train", "optimizer") and key[-1] in _MULTIPLIERS


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
        elif below := section_for(field, value):
            yield from _resolve_paths(value, below, name, folder, f"{where}.")
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
