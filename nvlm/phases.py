"""What this process is doing, noted as it goes on: who watches for hangs reads it.

A note costs less than a microsecond. A process has one place of work, its training's main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A part of a step, as a message names it after `in`."""

    name: str
    order: int  # within a step
    # The process waits here for others, on the whole: it is not the one that they wait for.
    waits: bool = False
    # How many times longer than `run.hang_minutes` it may last.
    patience: int = 1


READING = Phase("data reading", 1)
SHARING = Phase("handing the batch to the replica", 2, waits=True)
ENCODING = Phase("encoding tiles", 3)
WEIGHING = Phase("summing up the step's loss weights", 3, waits=True)
FORWARD = Phase("the forward pass", 4)
# From the end of a forward pass to the start of the next, as the schedule has it.
BACKWARD = Phase("the backward pass and the pipeline's exchange", 4)
REDUCING = Phase("the gradient all-reduce", 5, waits=True)
COUNTING = Phase("summing up the step's loss and counts", 6, waits=True)
UPDATING = Phase("the optimizer's update", 7)
RECORDING = Phase("recording the step", 8)
VALIDATING = Phase("validation", 9, patience=3)
# As long as ranks wait for each other's files: see `nvlm.parallel.agreement`.
SAVING = Phase("saving a checkpoint", 10, patience=12)
# Of a process's first step, in which kernels are chosen and compiled.
FIRST_STEP_PATIENCE = 3


@dataclass(frozen=True)
class Place:
    """Where a process is in its work."""

    step: int  # being taken
    phase: Phase
    micro_batch: int | None  # its number in the step
    within: Phase | None  # what all of this is a part of, such as validation
    # Goes up with every note; the same number twice: nothing was done in between.
    number: int

    def __str__(self) -> str:
        of = "" if self.micro_batch is None else f" of micro-batch {self.micro_batch}"
        within = f"{self.within.name}: " if self.within else ""
        return f"{within}{self.phase.name}{of}"

    @property
    def order(self) -> int:
        """Within a step."""
        return (self.within or self.phase).order


_place = Place(0, READING, None, None, 0)
_within: Phase | None = None
_first_step = 1
_reading_seconds = 0.0
# Of each loader that is in use: gives the keys of the samples of the steps that it reads, the next
# one's first. May be asked by any thread.
readers: list[Callable[[], Sequence[str]]] = []


def here() -> Place:
    return _place


def patience() -> int:
    """How many times `run.hang_minutes` the present phase may last."""
    first = FIRST_STEP_PATIENCE if _place.step <= _first_step else 1
    within = _place.within.patience if _place.within else 1
    return max(_place.phase.patience, within, first)


def begin_work(step: int) -> None:
    """To be called before the first step that this process takes, which is `step`."""
    global _first_step
    _first_step = step
    enter(READING, step)


def begin_reading(step: int) -> None:
    """Note that the samples of `step` are read now."""
    global _reading_seconds
    _reading_seconds = 0.0
    enter(READING, step)


def add_reading(seconds: float) -> None:
    """Of this process's own reading, not of waiting for another's."""
    global _reading_seconds
    _reading_seconds += seconds


def reading_seconds() -> float:
    """Since `begin_reading`."""
    return _reading_seconds


def enter(phase: Phase, step: int | None = None, micro_batch: int | None = None) -> None:
    """Note that the process goes on with `phase`; `step` where another one begins."""
    global _place
    now = _place
    step = now.step if step is None else step
    _place = Place(step, phase, micro_batch, _within, now.number + 1)


@contextmanager
def within(phase: Phase) -> Iterator[None]:
    """Note that what is entered in the block is a part of `phase`."""
    global _within
    before, _within = _within, phase
    try:
        enter(phase)
        yield
    finally:
        _within = before
