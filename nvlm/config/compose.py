"""From YAML files and `a.b=c` overrides to a checked `RunConfig`.

A file may start with `base:`, a list of files (relative to it) that it is merged over, in order.
`data.blend` is replaced as a whole, by a file or by `data.blend={...}`; `data.blend.NAME=...`
changes one source. Values that start with `./` or `../` are paths relative to the file they are
written in; all other relative paths are relative to the working directory.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from nvlm.config.checks import check_config
from nvlm.config.schema import RunConfig, SourceConfig
from nvlm.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path`, merge its bases and `overrides`, and check the result.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has the wrong type, or
            sections contradict each other. The message names the file and the key.
    """
    below, above = _load_with_bases(Path(path), ()), _parse_overrides(overrides)
    replaces_blend = any(override.startswith("data.blend=") for override in overrides)
    merged = _merge(below, above, replaces_blend)
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None
    config = validate(values, source=str(path))
    check_config(config, source=str(path))
    return config


def validate(values: Any, source: str) -> RunConfig:
    """Build a `RunConfig` from plain values; every problem becomes a line of one `ConfigError`."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [_describe(problem) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from None


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the resolved configuration as YAML, beside and renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_text(to_yaml(config))
    beside.replace(path)


def to_yaml(config: BaseModel) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _load_with_bases(path: Path, seen: tuple[Path, ...]) -> DictConfig:
    if not path.is_file():
        wanted_by = f" (a base of {seen[-1]})" if seen else ""
        raise ConfigError(f"{path}: no such configuration file{wanted_by}")
    if path.resolve() in [other.resolve() for other in seen]:
        raise ConfigError(f"{path}: is its own base, through {' -> '.join(map(str, seen))}")
    try:
        own = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {_first_line(error)}") from None
    if not isinstance(own, DictConfig):
        raise ConfigError(f"{path}: must be a mapping of sections, found a list")
    bases = own.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    layers = [_load_with_bases(path.parent / base, (*seen, path)) for base in bases]
    _anchor_paths(own, path.parent)
    merged = OmegaConf.create()
    for layer in [*layers, own]:
        merged = _merge(merged, layer, OmegaConf.select(layer, "data.blend") is not None)
    return merged


def _merge(below: DictConfig, above: DictConfig, replaces_blend: bool) -> DictConfig:
    """`above` over `below`, key by key. A blend is one value: it replaces the one below."""
    if replaces_blend and OmegaConf.select(below, "data.blend") is not None:
        below = copy.deepcopy(below)
        below.data.blend = None
    return OmegaConf.merge(below, above)  # type: ignore[return-value]


def _anchor_paths(node: DictConfig, folder: Path) -> None:
    for key in node:
        value = node._get_node(key)
        if isinstance(value, DictConfig):
            _anchor_paths(value, folder)
            continue
        raw = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index]
        if isinstance(raw, str) and raw.startswith(("./", "../")):
            node[key] = os.path.normpath(folder / raw)


def _parse_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r}: expected key=value, such as train.steps=100")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"overrides {list(overrides)}: {_first_line(error)}") from None


def _describe(problem: Any) -> str:
    location = _without_tags([str(part) for part in problem["loc"]])
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_did_you_mean(location)}"
    if problem["type"] == "missing":
        return f"missing key '{key}'"
    found = problem["input"]
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, found {found!r}"


def _without_tags(location: list[str]) -> list[str]:
    """Without what the schema puts behind a blend's names: which kind of entry it takes it for."""
    parts = iter(location)
    kept = []
    for part in parts:
        kept.append(part)
        if part == "blend":
            kept += itertools.islice(parts, 1)
            next(parts, None)
    return kept


def _did_you_mean(location: list[str]) -> str:
    """The closest key of the same section, or the section that has a key of this name."""
    section: Any = RunConfig
    parts = iter(location[:-1])
    for part in parts:
        field = section.model_fields.get(part)
        section = field.annotation if field else None
        if part == "blend" and next(parts, None) is not None:
            section = SourceConfig
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return ""
    close = difflib.get_close_matches(location[-1], section.model_fields, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{'.'.join([*location[:-1], close[0]])}'?"
    everywhere = list(_all_keys(RunConfig))
    homes = [key for key in everywhere if key.rpartition(".")[2] == location[-1]]
    if homes:
        return f"; did you mean '{homes[0]}'?"
    return f"; '{'.'.join(location[:-1]) or 'the top level'}' has {', '.join(section.model_fields)}"


def _all_keys(section: type[BaseModel], prefix: str = "") -> Any:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
