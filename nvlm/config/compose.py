"""From YAML files and `a.b=c` overrides to a checked `RunConfig`, or to one for each stage."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from nvlm.config.checks import contradictions, model_differences, world_size_problems
from nvlm.config.layers import STAGES, Key, Layer, merge, read_layers, read_overrides
from nvlm.config.paths import expand_path
from nvlm.config.schema import RunConfig
from nvlm.config.shipped import find_run
from nvlm.config.stage_file import place_stage
from nvlm.config.wording import describe_all, shorten
from nvlm.config.yaml_file import Values
from nvlm.errors import ConfigError
from nvlm.files import write_text
from nvlm.launch import rank_to_speak
from nvlm.printing import say

# Stage -> its run, in the order in which they train; a file without stages is one run, named None.
Runs = dict[str | None, RunConfig]


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    world_size: int | None = None,
    stage: str | None = None,
) -> RunConfig:
    """Read `path`, merge its bases and `overrides`, and check the result.

    Where there is no such file, `path` may be a name of a run that comes with nvlm (shipped.py).

    Args:
        world_size: the number of processes, if the layout and the batch shall fit it.
        stage: which one, of a file with stages.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has the wrong type, or
            sections contradict each other. All problems of the overrides, paths and values are in
            one error, in one line each, which names the file or override and the key. Or the file
            has stages and none is asked for, or has not the one that is.
    """
    runs = load_runs(path, overrides, world_size, stage)
    if len(runs) > 1 or (stage is None and None not in runs):
        which = " or ".join(f"--stage {name}" for name in names(runs))
        raise ConfigError(f"{path}: has {STAGES}: say which one: {which}")
    return next(iter(runs.values()))


def load_runs(
    path: str | Path,
    overrides: Sequence[str] = (),
    world_size: int | None = None,
    stage: str | None = None,
) -> Runs:
    """All runs that `path` describes, each as `load_config` gives it.

    Args:
        world_size: see `load_config`; that of `stage`, where one is given.
        stage: only this one, of a file with stages.

    Raises:
        ConfigError: see `load_config`. Lines about one stage name it.
    """
    path = find_run(expand_path(str(path)))
    problems: list[str] = []
    layers = read_layers(path, problems)
    stages: list[str | None] = [*dict.fromkeys(layer.stage for layer in layers if layer.stage)]
    given = read_overrides(overrides, [*map(str, stages)], problems)
    try:
        check_stage(path, stage, stages)
    except ConfigError as error:
        problems += error.args
    composed = [
        _compose(name, [*layers, *given], str(path), before)
        for name, before in zip(stages or [None], [None, *stages], strict=False)
    ]
    for one in composed:
        if one.config is not None and world_size is not None and stage in (None, one.stage):
            one.problems += world_size_problems(one.config, world_size)
    problems += _described(composed, str(path))
    if problems:
        raise ConfigError(*problems)
    for override in given:
        concerned = [one.values for one in composed if override.stage in (None, one.stage)]
        _say_what_was_undone(override, concerned)
    runs = {one.stage: one.config for one in composed if one.config is not None}
    return runs if stage is None else {stage: runs[stage]}


def has_stages(path: str | Path) -> bool:
    """Whether a file describes stages, its bases included.

    Raises:
        ConfigError: see `load_config`.
    """
    return any(layer.stage for layer in read_layers(find_run(expand_path(str(path))), []))


def check_stage(path: str | Path, stage: str | None, stages: Collection[str | None]) -> None:
    """Raise `ConfigError` where the file `path` has not the stage that is asked for."""
    if stage is not None and stage not in stages:
        there_are = f"there are {', '.join(map(str, stages))}" if stages else f"it has no {STAGES}"
        raise ConfigError(f"{path}: no stage {stage!r}: {there_are}")


def names(runs: Runs) -> list[str]:
    """The stages of a file, in their order."""
    return [name for name in runs if name is not None]


@dataclass
class _Composed:
    """One stage's run, or the only run of a file; None: `problems` say why it is none."""

    stage: str | None
    values: Values  # as written
    config: RunConfig | None
    problems: list[str]


def _compose(stage: str | None, layers: list[Layer], path: str, before: str | None) -> _Composed:
    own = [layer for layer in layers if layer.stage in (None, stage)]
    given = merge(own)
    values = dict(given)
    problems: list[str] = []
    if stage is not None:
        problems = place_stage(values, stage, own, before)

    def origin_of(location: list[str]) -> str:
        for layer in reversed(own):
            if _says(layer.values, location):
                return "" if layer.name == path else f" (in {layer.name})"
        return ""

    config = None
    try:
        config = RunConfig.model_validate(values)
        problems += contradictions(config)
    except ValidationError as error:
        problems += describe_all(error, RunConfig, origin_of)
    return _Composed(stage, given, config, problems)


def _described(composed: list[_Composed], path: str) -> Iterator[str]:
    """Every problem in one line; what all stages have in common is said once."""
    first, *rest = composed
    common = [line for line in first.problems if all(line in one.problems for one in rest)]
    common = common if rest else []
    yield from (f"{path}: {line}" for line in common)
    for one in composed:
        where = path if one.stage is None else f"{path}: {STAGES}.{one.stage}"
        yield from (f"{where}: {line}" for line in one.problems if line not in common)
        if one.config is not None and first.config is not None:
            for key, ours, theirs in model_differences(one.config.model, first.config.model):
                yield (
                    f"{where}: {key} is {ours}, and {theirs} in {STAGES}.{first.stage}: stages "
                    "train one model"
                )
    for before, after in pairwise(one for one in composed if one.config is not None):
        assert before.config is not None and after.config is not None
        theirs = before.config.stage.adapters
        if theirs and theirs != after.config.stage.adapters:
            yield (
                f"{path}: {STAGES}.{after.stage}: stage.adapters are not those of {STAGES}."
                f"{before.stage}, whose checkpoint it starts from: say the same ones, or make it a "
                "run of its own from what `nvlm convert merge` writes"
            )


def validate(values: Any, where: str) -> RunConfig:
    """Build a `RunConfig` from plain values. Rules between sections are not looked at.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        found = describe_all(error, RunConfig, lambda location: "")
        raise ConfigError(*(f"{where}: {problem}" for problem in found)) from None


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the resolved configuration as YAML, beside and renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_yaml(config))


def to_yaml(config: BaseModel | Values) -> str:
    values = config if isinstance(config, dict) else config.model_dump(mode="json")
    return yaml.safe_dump(values, sort_keys=False)


def _say_what_was_undone(override: Layer, stages: Sequence[Values]) -> None:
    """Of overrides of one key the last counts, so that scripts can append; the others are named.

    Args:
        stages: the values of each stage that the override is about, or of the only run.
    """
    for key, value in _leaves(override.values, ()):
        found = [_value_at(values, key) for values in stages]
        if value not in found and rank_to_speak() == 0:
            say(
                f"note: {override.name} does not count: a later one leaves {'.'.join(key)} as "
                f"{shorten(found[-1])}",
                file=sys.stderr,
            )


def _value_at(values: Any, key: Key) -> Any:
    for part in key:
        values = values.get(part) if isinstance(values, dict) else None
    return values


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
