"""What a grid's folder holds: which runs are done, begun or changed, and who works in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nvlm.ablate.cells import (
    CELLS_FOLDER,
    DIFFERENCE_FILE,
    Cell,
    Initial,
    Run,
    difference_of,
)
from nvlm.checkpoint_files import CONFIG_FILE, read_progress
from nvlm.config import RunConfig, save_config
from nvlm.config.changed import differences
from nvlm.config.compose import to_yaml, validate
from nvlm.config.yaml_file import read_yaml
from nvlm.errors import ConfigError, NvlmError, TrainingError
from nvlm.files import write_text
from nvlm.places import check_folder
from nvlm.printing import listed
from nvlm.run_checkpoints import CHECKPOINTS_FOLDER, find_newest
from nvlm.train.run_folder import METRICS_FILE

# What may be another without another result.
_WITHOUT_EFFECT = (
    *("run.", "log.", "parallel.", "train.recompute.", "data.num_workers", "data.index_dir"),
    *("checkpoint.every", "checkpoint.background", "checkpoint.keep", "checkpoint.keep_every"),
)
_MOST_SETTINGS = 6
_LOCK_FILE = ".lock"


@dataclass(frozen=True)
class State:
    """How far a run is."""

    step: int  # of its newest whole checkpoint; 0: none
    steps: int
    problem: str = ""  # why its checkpoints cannot be gone on from

    @property
    def is_done(self) -> bool:
        return self.step >= self.steps

    @property
    def in_words(self) -> str:
        if self.problem:
            return "damaged"
        if self.is_done:
            return "done"
        return f"step {self.step:,} of {self.steps:,}" if self.step else "new"


def state_of(run: Run) -> State:
    """As its folder says it: what is counted is what is saved."""
    steps = run.config.train.steps
    try:
        checkpoint = find_newest(run.folder / CHECKPOINTS_FOLDER).checkpoint
        progress = read_progress(checkpoint) if checkpoint is not None else None
    except NvlmError as error:
        return State(0, steps, str(error))
    return State(progress["step"] if progress else 0, steps)


def all_runs(cells: Sequence[Cell]) -> list[Run]:
    """Each run once, those that others start from before them, seed by seed."""
    seeds = next(iter(cells)).runs
    chains = [run for seed in seeds for cell in cells for run in cell.runs[seed].chain]
    return list({run.folder: run for run in chains}.values())


def all_initial(cells: Sequence[Cell]) -> list[Initial]:
    """First weights that the grid makes, each once."""
    found = [run.initial for run in all_runs(cells) if run.initial is not None]
    return list({initial.folder: initial for initial in found}.values())


def is_made(initial: Initial, cells: Sequence[Cell]) -> bool:
    """Whether it is there, whole, or every run that starts from it is done."""
    if (initial.folder / CONFIG_FILE).is_file():
        return True
    starting = [run for run in all_runs(cells) if run.initial == initial]
    return all(state_of(run).is_done for run in starting)


def check_unchanged(cells: Sequence[Cell]) -> None:
    """Raise `ConfigError` that names every run that has begun with other settings than it has now.

    The runs of earlier stages have their settings in their folder's name.
    """
    problems = []
    for cell in cells:
        for seed, run in cell.runs.items():
            changed = list(_changed(run))
            if changed:
                problems.append(
                    f"cell {cell.name} seed {seed} has begun with other settings: "
                    f"{listed(changed, _MOST_SETTINGS)}: nothing is overwritten: take the change "
                    f"back, call the value otherwise, or remove {run.folder}"
                )
    if problems:
        raise ConfigError(*problems)


def _changed(run: Run) -> Iterator[str]:
    path = run.beside(".yaml")
    if not (path.is_file() and (run.folder / METRICS_FILE).is_file()):
        return
    saved = validate(read_yaml(path), str(path))
    for key, theirs, ours in differences(saved, run.config):
        if key == "checkpoint.load" and (run.before or run.initial):
            # What the grid makes is the same where names are, wherever its folder lies.
            theirs, ours = Path(str(theirs)).name, Path(str(ours)).name
        if theirs != ours and not f"{key}.".startswith(_WITHOUT_EFFECT):
            yield f"{key} {_short(theirs)} (now {_short(ours)})"


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def write_cells(cells: Sequence[Cell]) -> None:
    """Write each run's configuration, and of each cell the difference to the base."""
    base = cells[0]
    for run in all_runs(cells):
        path = run.beside(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_saved(path, run.config):
            save_config(run.config, path)
    for initial in all_initial(cells):
        initial.folder.parent.mkdir(parents=True, exist_ok=True)
        if not _is_saved(initial.config_file, initial.config):
            save_config(initial.config, initial.config_file)
    for cell in cells:
        values: Mapping[str, Any] = {
            key: {"base": old, "cell": new} for key, (old, new) in difference_of(cell, base).items()
        }
        write_text(cell.folder / DIFFERENCE_FILE, to_yaml(dict(values)))


def _is_saved(path: Path, config: RunConfig) -> bool:
    return path.is_file() and path.read_bytes() == to_yaml(config).encode()


def unnamed_cells(folder: Path, cells: Sequence[Cell]) -> list[str]:
    """Cells in the folder that the grid does not name any more; they are left alone."""
    there = folder / CELLS_FOLDER
    names = {cell.name for cell in cells}
    found = there.iterdir() if there.is_dir() else ()
    return sorted(path.name for path in found if path.is_dir() and path.name not in names)


@contextmanager
def own_grid_folder(folder: Path) -> Iterator[None]:
    """One grid at a time works in `folder`; the system frees it when its process ends.

    Raises:
        TrainingError: another one does.
        PlaceError: it cannot be written.
    """
    check_folder(folder, "dir")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK_FILE).acquire(timeout=0):
            yield
    except Timeout:
        raise TrainingError(
            f"{folder}: another `nvlm ablate` works in it: wait for its end, or give another --dir"
        ) from None
