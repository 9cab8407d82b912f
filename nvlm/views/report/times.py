"""Where a run's time went: within its steps, between them, and while it stood still."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvlm.train.step_line import spoken_time
from nvlm.views.report.run_record import RunRecord

# Events with which a process of the run begins.
_STARTS = ("start", "resume")


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float
    share: float  # of all parts together
    about: str


def time_parts(run: RunRecord) -> list[Part]:
    """The parts of a run's time, those of a step first; parts that took none are left out.

    A run of an earlier version, whose records have no `time`, says nothing of what was between its
    steps.
    """

    def total(key: str) -> float:
        return run.series(key).sum()

    data, encode = total("data_seconds"), total("encode_seconds")
    forward, optimizer = total("forward_backward_seconds"), total("optimizer_seconds")
    validation = total("validation/seconds")
    # `held` is what training waited for where a checkpoint is written beside it.
    saves = [event.fields for event in run.events if event.kind == "save"]
    saving = sum(_number(fields.get("held", fields.get("seconds"))) for fields in saves)
    between, still = _gaps(run)
    seconds = [
        ("data", data, "waiting for the step's samples"),
        ("encode", encode, "tiles through the vision model, forwards"),
        (
            "forward and backward",
            forward - encode,
            "all else of the schedule",
        ),
        ("optimizer", optimizer, "clipping and the update"),
        ("rest of the step", total("seconds") - data - forward - optimizer, "counting, logging"),
        ("validation", validation, "held-out losses and answers"),
        ("checkpoints", saving, "steps waited for them"),
        ("between steps", between - validation - saving, "what else is between steps"),
        ("not training", still, "from the last step to the first one after a new start"),
    ]
    kept = [entry for entry in seconds if entry[1] > 1e-3]
    whole = sum(entry[1] for entry in kept)
    return [Part(name, value, value / whole, about) for name, value, about in kept]


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else 0.0


def _gaps(run: RunRecord) -> tuple[float, float]:
    """Seconds between one step's end and the next one's begin: in one process, and over starts."""
    ended, took = run.series("time"), run.series("seconds")
    if len(ended) < 2 or len(ended) != len(took):
        return 0.0, 0.0
    gaps = np.maximum(np.diff(ended.values) - took.values[1:], 0.0)
    starts = np.array(sorted(event.time for event in run.events if event.kind in _STARTS))
    before = np.searchsorted(starts, ended.values)
    is_start = np.diff(before) > 0
    return float(gaps[~is_start].sum()), float(gaps[is_start].sum())


def spoken_seconds(seconds: float) -> str:
    """In one or two units."""
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    return spoken_time(seconds)
