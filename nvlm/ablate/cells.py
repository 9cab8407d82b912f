"""From a grid to its cells: complete runs with folders of their own, all checked before any starts.

DIR/cells/NAME/seed_1/          a run: of stages the last one
DIR/cells/NAME/seed_1.yaml      its configuration; beside it its log and answers
DIR/cells/NAME/difference.yaml  what it changes of the base
DIR/stages/STAGE-HASH/          a run of an earlier stage, shared by all that begin alike
DIR/initial/HASH/               first weights, where the grid has them made: of each model and seed
DIR/index/                      the indexes of all data
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nvlm.ablate.grid_file import (
    FIRST_WEIGHTS,
    FirstWeights,
    Grid,
    first_weights_of,
    overrides_of,
)
from nvlm.config import RunConfig, changed, load_runs
from nvlm.config.changed import differences
from nvlm.config.compose import Runs
from nvlm.config.section_kinds import default_kind, kinds_of
from nvlm.errors import ConfigError
from nvlm.hashes import hash_json

CELLS_FOLDER = "cells"
STAGES_FOLDER = "stages"
INITIAL_FOLDER = "initial"
INDEX_FOLDER = "index"
DIFFERENCE_FILE = "difference.yaml"


@dataclass(frozen=True)
class Initial:
    """First weights that the grid makes: a checkpoint folder."""

    folder: Path
    sources: FirstWeights
    config: RunConfig = field(compare=False)  # of a run that starts from it

    @property
    def config_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.yaml")


@dataclass(frozen=True)
class Run:
    """An ordinary run of a grid, of which a cell may have several: one for each stage."""

    config: RunConfig
    stage: str | None  # of a base with stages
    before: Run | None  # whose weights it starts from
    initial: Initial | None = None  # of a first stage

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)

    def beside(self, suffix: str) -> Path:
        """A file or folder of the grid beside the run's own folder."""
        return self.folder.with_name(f"{self.folder.name}{suffix}")

    @property
    def chain(self) -> list[Run]:
        """The runs before it and itself, in their order."""
        return [*(self.before.chain if self.before else []), self]


@dataclass(frozen=True)
class Cell:
    """The base, or it with other values on some axes."""

    name: str
    choices: dict[str, str]  # axis -> value, where it is not the base's
    overrides: list[str]  # over the base and `set`
    runs: dict[int, Run]  # seed -> its last stage

    @property
    def is_base(self) -> bool:
        return not self.choices

    @property
    def folder(self) -> Path:
        return next(iter(self.runs.values())).folder.parent


def make_cells(grid: Grid, folder: Path, overrides: Sequence[str] = ()) -> list[Cell]:
    """All cells, the base first.

    Args:
        folder: DIR.
        overrides: over the grid's `set`, as `nvlm train` takes them.

    Raises:
        ConfigError: a configuration cannot be had, contradicts itself or does not fit `processes`,
            or two cells have the same one. All problems of all cells in one error; what all of
            them have in common is said once.
    """
    common = [*overrides_of(grid.set), *overrides]
    found: list[Cell] = []
    problems: dict[str, list[str]] = {}
    for choices in _choices(grid):
        name = "+".join(f"{axis}={value}" for axis, value in choices.items()) or "base"
        own = [
            text for axis, value in choices.items() for text in overrides_of(grid.axes[axis][value])
        ]
        try:
            sources = first_weights_of(grid, choices)
            runs = {
                seed: _runs_of(grid, folder, name, seed, _last_of_each([*common, *own]), sources)
                for seed in grid.seeds
            }
        except ConfigError as error:
            problems[name] = [str(line) for line in error.args]
            continue
        found.append(Cell(name, choices, own, runs))
    if problems:
        raise ConfigError(*_told(problems, len(problems) + len(found)))
    if same := list(_same_cells(found)):
        raise ConfigError(*same)
    return found


def _choices(grid: Grid) -> Iterator[dict[str, str]]:
    """The values of each cell, where they are not the base's; the base first."""
    most = len(grid.axes) if grid.combine == "product" else 1
    for num_axes in range(most + 1):
        for axes in itertools.combinations(grid.axes, num_axes):
            for values in itertools.product(*(grid.axes[axis] for axis in axes)):
                yield dict(zip(axes, values))


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Without those whose key a later one has: axes go over `set`, and the command line too."""
    last: dict[str, str] = {}
    for text in overrides:
        key = text.partition("=")[0]
        last.pop(key, None)
        last[key] = text
    return list(last.values())


def _runs_of(
    grid: Grid,
    folder: Path,
    name: str,
    seed: int,
    overrides: list[str],
    sources: FirstWeights | None,
) -> Run:
    own = [f"train.seed={seed}", f"run.dir={folder}", f"run.name={folder.name}"]
    runs = load_runs(grid.base, [*overrides, *own], grid.processes)
    return _placed(runs, folder, name, seed, sources)


def _placed(runs: Runs, folder: Path, name: str, seed: int, sources: FirstWeights | None) -> Run:
    """Each stage in its folder, and starting from the one before it in that one's."""
    before: Run | None = None
    last = list(runs)[-1]
    for stage, config in runs.items():
        changes: dict[str, Any] = {}
        initial: Initial | None = None
        if before is not None:
            changes["checkpoint.load"] = str(before.folder)
        elif sources is not None:
            initial = _initial(folder, config, sources)
            changes["checkpoint.load"] = str(initial.folder)
        if config.data.index_dir is None:
            changes["data.index_dir"] = str(folder / INDEX_FOLDER)
        config = changed(config, changes)
        if stage == last:
            place, called = folder / CELLS_FOLDER / name / f"seed_{seed}", f"{name}-seed_{seed}"
        else:
            called = f"{stage}-{_identity(config, before, initial)}"
            place = folder / STAGES_FOLDER / called
        placed = {"run.dir": str(place), "run.name": f"{config.run.name}-{called}"}
        before = Run(changed(config, placed), stage, before, initial)
    assert before is not None, "a file has a run"
    return before


def _initial(folder: Path, config: RunConfig, sources: FirstWeights) -> Initial:
    """Of `config`'s model, what is not in `sources` drawn by its seed."""
    model = config.model.model_dump(mode="json", exclude_defaults=True)
    _add_kinds(config.model, model)
    model.pop("name", None)
    what = {"model": model, "precision": config.train.precision, "seed": config.train.seed}
    called = hash_json(what | sources.model_dump())[:12]
    return Initial(folder / INITIAL_FOLDER / called, sources, config)


def _identity(config: RunConfig, before: Run | None, initial: Initial | None) -> str:
    """The same for runs that differ in nothing but their place.

    What is at its default is left out, so that a key that a later version adds changes no hash.
    """
    values = config.model_dump(mode="json", exclude_defaults=True)
    _add_kinds(config, values)
    del values["run"]
    values["data"].pop("index_dir", None)
    if (start := before or initial) is not None:  # its folder is named by what it is
        values["checkpoint"]["load"] = start.folder.name
    return hash_json(values)[:12]


def _add_kinds(section: BaseModel, values: dict[str, Any]) -> None:
    """Put into `values` the kinds of the parts of `section`, where they are not what a key without
    one is read as: each class has its own kind for default, so that none of them is said."""
    for key, about in type(section).model_fields.items():
        part = getattr(section, key)
        if isinstance(part, BaseModel):
            inner = values.get(key, {})
            _add_kinds(part, inner)
            if kinds_of(about) and (kind := vars(part)["kind"]) != default_kind(about):
                inner["kind"] = kind
            if inner:
                values[key] = inner


def _same_cells(cells: Sequence[Cell]) -> Iterator[str]:
    first: dict[str, str] = {}
    for cell in cells:
        run = next(iter(cell.runs.values()))
        identity = _identity(run.config, run.before, run.initial)
        if identity in first:
            rest = ": the base is always a cell" if first[identity] == "base" else ""
            yield (
                f"cells {first[identity]} and {cell.name} have the same configuration: remove one "
                f"of them{rest}"
            )
        first.setdefault(identity, cell.name)


def _told(problems: Mapping[str, Sequence[str]], num_cells: int) -> Iterator[str]:
    counts = Counter(line for lines in problems.values() for line in dict.fromkeys(lines))
    common = [line for line, count in counts.items() if count == num_cells > 1]
    yield from common
    for name, lines in problems.items():
        yield from (f"cell {name}: {line}" for line in lines if line not in common)


def difference_of(cell: Cell, base: Cell) -> dict[str, list[Any]]:
    """Key -> [value of the base, value of the cell], resolved; keys of earlier stages name them."""
    seed = next(iter(cell.runs))
    found: dict[str, list[Any]] = {}
    theirs, ours = base.runs[seed].chain, cell.runs[seed].chain
    for before, now in zip(theirs, ours, strict=True):
        is_last = now is ours[-1]
        prefix = "" if is_last and len(ours) == 1 else f"stages.{now.stage}."
        own_start = now.before or now.initial
        for key, old, new in differences(before.config, now.config):
            if not key.startswith("run.") and not (key == "checkpoint.load" and own_start):
                found[f"{prefix}{key}"] = [old, new]
        if before.initial and now.initial:
            for key, old, new in differences(before.initial.sources, now.initial.sources):
                found[f"{FIRST_WEIGHTS}{key}"] = [old, new]
    return found
