"""Which stages of a file are left to run, from what their folders hold.

A stage is finished when its newest whole checkpoint is of its last step. Once a stage has a
checkpoint, those before it are finished for good: it was trained from them, so they do not train
again, and their checkpoints may be removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm.checkpoint_files import read_config, read_progress
from nvlm.config import RunConfig
from nvlm.errors import CheckpointError, TrainingError
from nvlm.printing import listed
from nvlm.run_checkpoints import CHECKPOINTS_FOLDER, find_newest, list_steps
from nvlm.train.checkpoint import find_resume_point

# What may change without another result of a stage that is finished.
_WITHOUT_EFFECT = (
    *("run.", "parallel.", "log.", "checkpoint.", "train.steps", "train.recompute."),
    *("data.num_workers", "data.index_dir", "validation."),
)
_MOST_SETTINGS = 6


@dataclass(frozen=True)
class Order:
    """The stages to run now, in turn, and what to say about the others."""

    left: list[str]
    notes: list[str]


def find_order(runs: Mapping[str, RunConfig], only: str | None, command: str) -> Order:
    """Read the run folders of a file's stages.

    Args:
        only: the stage that is asked for; None: all.
        command: that runs the file, to be named in messages.

    Raises:
        CheckpointError: a stage's checkpoints cannot be gone on from.
        TrainingError: the stage before `only` is not finished, one that others were trained from
            is to have more steps, or a later one began from random weights.
    """
    names = list(runs)
    # The last one that has a checkpoint; where none has, the first is to begin.
    place, step = 0, None
    for place in reversed(range(len(names))):
        step = _newest_step(runs[names[place]])
        if step is not None:
            break
    current = runs[names[place]]
    if step is not None and place > 0:
        _check_origin(names[place], current, names[place - 1])
    is_finished = step is not None and step >= current.train.steps
    for name in names[:place]:
        _check_not_longer(name, runs[name], names[place], current)
    num_finished = place + is_finished
    if only is None:
        finished = names[:num_finished]
        return Order(names[num_finished:], [n for f in finished for n in _look_back(f, runs[f])])
    if names.index(only) > num_finished:
        before = names[names.index(only) - 1]
        done = step if before == names[place] else None
        state = f"has {done} of its {runs[before].train.steps} steps" if done else "has not begun"
        raise TrainingError(
            f"stage {only} starts from stage {before}, which {state} ({runs[before].run.dir}): "
            f"finish it first: `{command} --stage {before}`"
        )
    return Order([only], [])


def _newest_step(config: RunConfig) -> int | None:
    """The step of the newest whole checkpoint of a run; None: it has none and never had one.

    Raises:
        CheckpointError: none is whole.
    """
    checkpoint = find_newest(Path(config.run.dir) / CHECKPOINTS_FOLDER).checkpoint
    if checkpoint is None:
        return None
    progress = read_progress(checkpoint)
    return progress["step"] if progress else 0


def _check_origin(name: str, config: RunConfig, before: str) -> None:
    """Raise `TrainingError` where a stage that follows another one is a run of its own."""
    checkpoint = find_newest(Path(config.run.dir) / CHECKPOINTS_FOLDER).checkpoint
    assert checkpoint is not None, "it has a step"
    if read_config(checkpoint).checkpoint.load == "random":
        raise TrainingError(
            f"stage {name} follows stage {before}, but what is in {config.run.dir} began from "
            "random weights (checkpoint.load), as a run of its own: give another run.dir"
        )


def _check_not_longer(name: str, config: RunConfig, later: str, later_config: RunConfig) -> None:
    found = list_steps(Path(config.run.dir) / CHECKPOINTS_FOLDER)
    # Whole or not: here it only says how far the stage was. 0: a copy, which does not say.
    step = found[0][0] if found else 0
    if 0 < step < config.train.steps:
        raise TrainingError(
            f"stage {name} ended at step {step} and stage {later} was trained from it "
            f"({later_config.run.dir}): train.steps {config.train.steps} would change what that "
            f"started from: set stages.{name}.train.steps={step}, or give another run.dir"
        )


def _look_back(name: str, config: RunConfig) -> Iterator[str]:
    """Lines about a stage that is finished: other settings change nothing of it any more.

    Raises:
        CheckpointError: it was another model's, or trained other parts of it.
    """
    yield f"stage {name} is finished: {config.run.dir}"
    try:
        newest = find_newest(Path(config.run.dir) / CHECKPOINTS_FOLDER)
    except CheckpointError:  # none is whole, and none is needed
        return
    if newest.checkpoint is None:
        return
    checkpoint = find_resume_point(config).checkpoint
    assert checkpoint is not None
    changed = list(_changed(read_config(checkpoint).model_dump(), config.model_dump()))
    if changed:
        yield (
            f"stage {name} was trained with other settings, and stays as it is: "
            f"{listed(changed, _MOST_SETTINGS)}"
        )


def _changed(saved: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for key in now:
        where, theirs, ours = f"{at}{key}", saved.get(key), now[key]
        if f"{where}.".startswith(_WITHOUT_EFFECT):
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict) and key != "blend":
            yield from _changed(theirs, ours, f"{where}.")
        elif ours != theirs:
            yield f"{where} {theirs} (now {ours})"
