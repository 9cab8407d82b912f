"""The file of a grid: a base run, what is varied of it, seeds, and how cells are compared."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from nvlm.config.paths import expand_path
from nvlm.config.section import Section
from nvlm.config.shipped import RUNS
from nvlm.config.values import Count, FolderName, Name, PathText, Positive, Seed
from nvlm.config.wording import describe_all, shorten
from nvlm.config.yaml_file import read_yaml
from nvlm.errors import ConfigError

GRIDS = RUNS.parent / "ablation"
MOST_FIELDS = 3
# Names of axes and of their values are parts of folders' names.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# Of an axis: not the run's, but what its first weights are made from.
FIRST_WEIGHTS = "first_weights."

Delta = dict[str, Any]  # key with dots, as in an override -> its value, as YAML has it


class Evaluation(Section):
    """What is asked of each finished run: a split's questions, benchmarks, both or neither."""

    data_root: PathText | None = None
    """Folder with the split's shards, as `nvlm evaluate --data-root` takes it."""
    split: FolderName = "heldout"
    limit_per_task: Count | None = None
    suite: list[Name] = Field(default=[])
    """Benchmarks, as `nvlm evaluate --suite` takes them."""
    data: PathText | None = None
    """Folder of the benchmarks' files, as `--data` takes it."""
    limit: Count | None = None
    max_new_tokens: Count | None = None
    mir: Count | None = None
    """Samples of the split that the modality integration rate is measured on. null: not."""


class Scaling(Section):
    """Which cells a power law is fitted through."""

    axis: Name
    """Its values and the base are the sizes."""
    metric: Name = "validation/loss"
    size: Literal["parameters", "trained_parameters", "tokens"] = "parameters"
    """What a size is counted in: of the model, of what trains, or tokens of the run."""
    next: Positive | None = None
    """Size to predict. null: the largest by the ratio of the two largest."""


class FirstWeights(Section):
    """Folders or hub ids that first weights are made from, as `nvlm convert from-hf` takes them."""

    vision: PathText | list[PathText]
    """Of encoders side by side a list, in their order."""
    language: PathText


class Grid(Section):
    """A grid, as its file says it."""

    base: Name
    """A run's YAML file, or a name of `nvlm config list`; it may have stages."""
    dir: PathText | None = None
    """Folder of the cells. null: runs/ablation/NAME of the file."""
    base_name: Name = "base"
    """What tables call the base."""
    set: dict[Name, Any] = Field(default={})
    """Overrides of the base, for every cell and for the base itself."""
    first_weights: FirstWeights | None = None
    """What each model of the grid is converted from before its first stage, in place of the base's
    `checkpoint.load`. An axis may have `first_weights.language` among its fields. null: nothing is
    converted, runs start from what their `checkpoint.load` names."""
    seeds: list[Seed] = Field(default=[1234], min_length=1)
    """Each cell is run with each: `train.seed` of all stages."""
    axes: dict[Name, dict[Name, dict[Name, Any]]] = Field(min_length=1)
    """Axis -> value -> the one to three fields that it changes. The base has a value of its own on
    every axis, which is not listed."""
    combine: Literal["one_at_a_time", "product"] = "one_at_a_time"
    """Cells that differ from the base in one axis, or in every combination of them."""
    processes: Count = 1
    """Processes of each run: GPUs, where there are some."""
    card: Name | None = None
    """Card that `--dry-run` plans hours on. null: none are planned."""
    evaluate: Evaluation = Evaluation()
    rank_by: Name | None = None
    """Number that cells are ranked by. null: `answers`, else the first benchmark, else
    `validation/loss`."""
    scaling: Scaling | None = None

    @property
    def ranked_by(self) -> str:
        if self.rank_by is not None:
            return self.rank_by
        if self.evaluate.data_root is not None:
            return "answers"
        return f"suite/{self.evaluate.suite[0]}" if self.evaluate.suite else "validation/loss"


def grid_names() -> list[str]:
    """Names of the grids that come with nvlm, sorted."""
    return sorted(path.stem for path in GRIDS.glob("*.yaml"))


def find_grid(given: str) -> Path:
    """The file that GRID of the command line means: an existing one, or else a shipped name's.

    Raises:
        ConfigError: neither is there.
    """
    path = Path(expand_path(given))
    if path.exists():
        return path
    if given in grid_names():
        return GRIDS / f"{given}.yaml"
    near = difflib.get_close_matches(Path(given).stem, grid_names(), cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"nvlm has {', '.join(grid_names())}"
    name = given if len(given) < 1000 and given.isprintable() else shorten(given)
    raise ConfigError(f"{name}: no such grid file; {hint}")


def read_grid(path: Path) -> Grid:
    """The grid of the file `path`, its paths made absolute or relative to the working directory.

    Raises:
        ConfigError: it is missing or not YAML, a key is unknown, a value has the wrong type, or
            what it asks for is none; all problems but the first kind together.
    """
    values = read_yaml(path)
    try:
        grid = Grid.model_validate(values)
    except ValidationError as error:
        found = describe_all(error, Grid, lambda location: "")
        raise ConfigError(*(f"{path}: {problem}" for problem in found)) from None
    problems = [*_axis_problems(grid), *_evaluation_problems(grid)]
    if problems:
        raise ConfigError(*(f"{path}: {problem}" for problem in problems))
    return _with_paths(grid, path)


def overrides_of(delta: Delta) -> list[str]:
    """`KEY=VALUE` of each field of a run, as `nvlm train` takes them."""
    return [
        f"{key}={_as_override(value)}"
        for key, value in delta.items()
        if not key.startswith(FIRST_WEIGHTS)
    ]


def first_weights_of(grid: Grid, choices: Mapping[str, str]) -> FirstWeights | None:
    """What the models of the cell of `choices` (axis -> value) are converted from."""
    if grid.first_weights is None:
        return None
    own = {
        key.removeprefix(FIRST_WEIGHTS): value
        for axis, name in choices.items()
        for key, value in grid.axes[axis][name].items()
        if key.startswith(FIRST_WEIGHTS)
    }
    return grid.first_weights.model_copy(update=own)


def _as_override(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str) and value and not value.startswith(("[", "{", "'", '"')):
        return json.dumps(value) if value == "null" or value != value.strip() else value
    return json.dumps(value)


def _axis_problems(grid: Grid) -> list[str]:
    problems = []
    for axis, values in grid.axes.items():
        where = f"axes.{axis}"
        for name in [axis, *values]:
            if not _WORD.fullmatch(name):
                problems.append(
                    f"{where}: {shorten(name)} becomes part of a folder's name: letters, digits, "
                    "`_`, `-` and `.`"
                )
        if not values:
            problems.append(f"{where}: has no value; each is a name and the fields that it changes")
        for name, delta in values.items():
            if not 1 <= len(delta) <= MOST_FIELDS:
                problems.append(
                    f"{where}.{name}: changes {len(delta)} fields; a value of an axis changes 1 to "
                    f"{MOST_FIELDS}, and what all cells have goes to `set`"
                )
            problems += _reserved(delta, f"{where}.{name}")
    if len(set(grid.seeds)) < len(grid.seeds):
        problems.append(f"seeds: {grid.seeds}: one is given twice")
    if grid.scaling is not None and grid.scaling.axis not in grid.axes:
        problems.append(f"scaling.axis: no axis {shorten(grid.scaling.axis)}")
    return [*problems, *_reserved(grid.set, "set"), *_first_weights_problems(grid)]


def _first_weights_problems(grid: Grid) -> Iterator[str]:
    deltas = {"set": grid.set}
    for axis, values in grid.axes.items():
        deltas |= {f"axes.{axis}.{name}": delta for name, delta in values.items()}
    for where, delta in deltas.items():
        for key, value in delta.items():
            if key.endswith("checkpoint.load") and grid.first_weights is not None:
                yield (
                    f"{where}.{key}: runs start from what first_weights is converted to: remove "
                    "one of the two"
                )
            if not key.startswith(FIRST_WEIGHTS):
                continue
            field = key.removeprefix(FIRST_WEIGHTS)
            if where == "set" or grid.first_weights is None:
                yield f"{where}.{key}: give the grid's own first_weights, which an axis may change"
            elif field not in FirstWeights.model_fields:
                yield f"{where}.{key}: has {', '.join(FirstWeights.model_fields)}"
            else:
                yield from _source_problems(f"{where}.{key}", field, value)


def _reserved(delta: Delta, where: str) -> list[str]:
    """What the grid itself decides of every run."""
    found = []
    for key in delta:
        parts = key.split(".")
        own = ".".join(parts[2:] if parts[0] == "stages" else parts)
        if own in ("run", "run.dir", "run.name"):
            found.append(f"{where}.{key}: names and folders of runs are the grid's (`dir`)")
        if own in ("train", "train.seed"):
            found.append(f"{where}.{key}: seeds are the grid's (`seeds`)")
    return found


def _source_problems(where: str, field: str, value: Any) -> Iterator[str]:
    try:
        FirstWeights.model_validate({"vision": "a", "language": "a"} | {field: value})
    except ValidationError:
        several = " or, of encoders side by side, a list of them" if field == "vision" else ""
        yield f"{where}: {shorten(value)}: should be a folder or a hub id{several}"


def _evaluation_problems(grid: Grid) -> list[str]:
    asked, problems = grid.evaluate, []
    if asked.suite and asked.data is None:
        problems.append("evaluate.suite: needs evaluate.data, the folder of the benchmarks' files")
    if asked.mir is not None and asked.data_root is None:
        problems.append("evaluate.mir: needs evaluate.data_root, whose split it is measured on")
    if asked.suite:
        from nvlm.evaluate.suite.settings import Settings, choose

        try:
            choose(",".join(asked.suite), [], Settings())
        except ConfigError as error:
            problems += [f"evaluate.suite: {line}" for line in error.args]
    return problems


def _with_paths(grid: Grid, path: Path) -> Grid:
    changes: dict[str, Any] = {"dir": grid.dir or f"runs/ablation/{path.stem}"}
    if grid.base.startswith(("./", "../")):
        changes["base"] = os.path.normpath(path.parent / grid.base)
    asked = grid.evaluate.model_dump()
    for key in ("data_root", "data"):
        asked[key] = _placed(asked[key], path)
    changes["dir"] = _placed(changes["dir"], path)
    if grid.first_weights is not None:
        sources = grid.first_weights.model_dump()
        changes["first_weights"] = {key: _all_placed(some, path) for key, some in sources.items()}
    changes["axes"] = {
        axis: {name: _with_first_weights(delta, path) for name, delta in values.items()}
        for axis, values in grid.axes.items()
    }
    return Grid.model_validate(grid.model_dump() | changes | {"evaluate": asked})


def _with_first_weights(delta: Delta, path: Path) -> Delta:
    own = {key: _all_placed(delta[key], path) for key in delta if key.startswith(FIRST_WEIGHTS)}
    return delta | own


def _all_placed(given: str | list[str], path: Path) -> Any:
    return (
        [_placed(one, path) for one in given] if isinstance(given, list) else _placed(given, path)
    )


def _placed(text: str | None, path: Path) -> str | None:
    """`./` and `../` start from the file's folder, as in configurations."""
    if text is None:
        return None
    found = expand_path(text)
    return os.path.normpath(path.parent / found) if found.startswith(("./", "../")) else found
