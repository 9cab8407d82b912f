"""What a run's folder says about it, read as it is: also while the run goes on, also of older runs.

Nothing is required but numbers: a file that is missing is nothing to show, and a line that a kill
cut off, or that is being written, is left out.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm.checkpoint_files import CONFIG_FILE
from nvlm.config.yaml_file import read_yaml
from nvlm.errors import NvlmError
from nvlm.train.events import Event, read_events
from nvlm.train.run_folder import (
    BETWEEN_STEPS_FILE,
    GENERATIONS_FILE,
    METRICS_FILE,
    SKIPPED_FILE,
)

# Source, sample and question.
Asked = tuple[str, str, str]
_MAX_QUESTIONS = 24
# Keys whose numbers are when and where, not what.
_PLACES = ("step",)


class ReportError(NvlmError):
    """There is no run to report on."""


@dataclass(frozen=True)
class Series:
    """A number over the steps; both of one length, in order of the steps."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> Series:
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])

    def sum(self) -> float:
        return float(self.finite.values.sum())


@dataclass
class SkippedGroup:
    """Samples of a source that were left out for one reason: the first one's record, how many."""

    first: dict[str, Any]
    count: int = 0


@dataclass
class RunRecord:
    """A run as its folder tells it."""

    folder: Path
    name: str
    config: dict[str, Any]  # texts; {} where it cannot be read
    steps: dict[str, Series]  # `metrics.jsonl`
    between: dict[str, Series]  # `between_steps.jsonl`
    skipped: list[SkippedGroup]  # the commonest first
    generations: dict[Asked, list[dict[str, Any]]]  # of the first questions
    num_questions: int  # of all
    events: list[Event]
    earlier_settings: list[tuple[str, dict[str, Any]]]  # (file, its settings), in order of steps
    notes: list[str] = field(default_factory=list)  # what could not be read

    def series(self, key: str) -> Series:
        """The numbers of `key`, wherever they stand; none where the run has none."""
        return self.steps.get(key) or self.between.get(key) or Series(_NO_STEPS, _NO_VALUES)

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin with `prefix`."""
        return sorted(key for key in {**self.steps, **self.between} if key.startswith(prefix))

    def setting(self, key: str) -> str | None:
        """What `key` (with dots) is set to, as a text."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return None if value is None else str(value)


_NO_STEPS, _NO_VALUES = np.zeros(0, np.int64), np.zeros(0, np.float64)


def read_run(folder: Path) -> RunRecord:
    """Everything that `folder` has of a run.

    Raises:
        ReportError: it is no run's folder, or the run has taken no step.
        OSError: a file is there and cannot be read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ReportError(f"{folder}: {what}: name the folder of a run (its run.dir)")
    metrics = folder / METRICS_FILE
    if not metrics.is_file():
        raise ReportError(
            f"{folder}: has no {METRICS_FILE}: not the folder of a run, or of one that has taken "
            "no step"
        )
    notes: list[str] = []
    steps = _read_series(metrics, notes)
    if not steps:
        raise ReportError(f"{metrics}: has no step yet: the run may be at its first")
    config = _read_settings(folder / CONFIG_FILE, notes)
    generations, num_questions = _by_question(_records(folder / GENERATIONS_FILE, notes))
    run_section = config.get("run")
    named = run_section.get("name") if isinstance(run_section, dict) else None
    return RunRecord(
        folder=folder,
        name=str(named or folder.resolve().name),
        config=config,
        steps=steps,
        between=_read_series(folder / BETWEEN_STEPS_FILE, notes),
        skipped=_skipped_groups(_records(folder / SKIPPED_FILE, notes)),
        generations=generations,
        num_questions=num_questions,
        events=[event for event in read_events(folder) if _is_whole(event)],
        earlier_settings=[
            (path.name, _read_settings(path, notes))
            for path in sorted(folder.glob("config.*.yaml"))
        ],
        notes=notes,
    )


def _is_whole(event: Event) -> bool:
    return (
        type(event.time) in (int, float)
        and type(event.step) is int
        and isinstance(event.kind, str)
        and isinstance(event.text, str)
        and isinstance(event.fields, dict)
    )


def _read_settings(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append(f"{path.name} is missing: settings are not known")
        return {}
    try:
        return dict(read_yaml(path))
    except NvlmError as error:
        notes.append(f"settings are not known: {error}")
        return {}


def _read_series(path: Path, notes: list[str]) -> dict[str, Series]:
    """Every number of the file's records; of two records of a step the later one counts."""
    columns: dict[str, tuple[array, array]] = {}
    for record in _records(path, notes):
        step = record.get("step")
        if type(step) is not int or not 0 <= step < 2**53:
            continue
        for key, value in record.items():
            if type(value) in (int, float) and key not in _PLACES:
                if key not in columns:
                    columns[key] = (array("q"), array("d"))
                steps, values = columns[key]
                steps.append(step)
                values.append(_as_float(value))
    return {key: _in_order(*column) for key, column in columns.items()}


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _in_order(steps: array, values: array) -> Series:
    of, numbers = np.array(steps, np.int64), np.array(values, np.float64)
    if len(of) > 1 and not (np.diff(of) > 0).all():
        # The last of equal steps, by looking from the end.
        _, last = np.unique(of[::-1], return_index=True)
        kept = len(of) - 1 - last
        of, numbers = of[kept], numbers[kept]
    return Series(of, numbers)


def _skipped_groups(records: Iterator[dict[str, Any]]) -> list[SkippedGroup]:
    """A run may leave out millions: only the first of each source and reason is kept."""
    groups: dict[tuple[str, str], SkippedGroup] = {}
    for row in records:
        place = (str(row.get("source", "")), str(row.get("reason", "")))
        groups.setdefault(place, SkippedGroup(row)).count += 1
    return sorted(groups.values(), key=lambda group: -group.count)


def _by_question(
    records: Iterator[dict[str, Any]],
) -> tuple[dict[Asked, list[dict[str, Any]]], int]:
    """The rows of the first questions, in order; and how many questions there are."""
    rows: dict[Asked, list[dict[str, Any]]] = {}
    others: set[int] = set()
    for row in records:
        if type(row.get("step")) is not int:
            continue
        keys = ("source", "sample_id", "question")
        source, sample, question = (str(row.get(key, "")) for key in keys)
        asked = (source, sample, question)
        if asked in rows or len(rows) < _MAX_QUESTIONS:
            rows.setdefault(asked, []).append(row)
        else:
            others.add(hash(asked))
    return rows, len(rows) + len(others)


def _records(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines; its last line may be half written."""
    if not path.is_file():
        return
    num_unread, is_last = 0, False
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                yield record
            elif line.strip():
                num_unread += 1
                is_last = not line.endswith(b"\n")
    if num_unread > is_last:
        notes.append(f"{path.name}: {num_unread - is_last:,} lines are no records")
