"""What a process says of itself when the run hangs: where it is, for the others and for a file."""

from __future__ import annotations

import faulthandler
import linecache
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from nvlm import phases, platform
from nvlm.files import write_text
from nvlm.launch import launched
from nvlm.printing import listed
from nvlm.workers import stacks_of_workers

REPORTS_FOLDER = "reports"
_MOST_KEYS = 40
_COLLECTIVES = ("/torch/distributed/", "/nvlm/parallel/agreement.py")


@dataclass(frozen=True)
class Standing:
    """Where a rank is. JSON values only: it travels through the run's store."""

    rank: int
    host: str
    process: int
    parent: int
    step: int
    place: str  # the phase, and its micro-batch
    order: int  # of the phase in a step
    waits: bool  # for other ranks, as far as its stack or its phase tells
    seconds: float  # without a move
    limit_seconds: float  # that the phase may last
    frame: str = ""  # `FILE:LINE in FUNCTION`, the innermost of nvlm or Megatron-core
    collectives: list[str] = field(default_factory=list)  # each group's last, the latest last
    # Group -> the number of its last collective here.
    sequences: dict[str, int] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.place} of step {self.step}"

    @property
    def collective(self) -> str:
        return self.collectives[-1] if self.collectives else ""


def standing(seconds: float, limit_seconds: float) -> Standing:
    """Of this process; cheap, as it is told every few seconds."""
    place = phases.here()
    return Standing(
        rank=launched().rank,
        host=socket.gethostname(),
        process=os.getpid(),
        parent=os.getppid(),
        step=place.step,
        place=str(place),
        order=place.order,
        waits=place.phase.waits,
        seconds=round(seconds, 1),
        limit_seconds=limit_seconds,
    )


def look_closely(now: Standing, thread: int) -> Standing:
    """`now` with what `thread`, which trains, is doing, and the collectives that were issued."""
    frame, in_collective = _innermost(thread)
    collectives = platform.current().last_collectives()
    return replace(
        now,
        waits=now.waits or in_collective,
        frame=frame,
        collectives=[str(found) for found in collectives],
        sequences={found.group: found.sequence for found in collectives},
    )


def _innermost(thread: int) -> tuple[str, bool]:
    """The innermost line of nvlm or Megatron-core, and whether the thread waits in a collective."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "", False
    path, line = frame.f_code.co_filename, frame.f_lineno
    waits = any(part in path for part in _COLLECTIVES) or (
        "/megatron/" in path and ".wait(" in linecache.getline(path, line)
    )
    while frame is not None:
        path = frame.f_code.co_filename
        for package in ("/nvlm/", "/megatron/core/"):
            _, found, rest = path.rpartition(package)
            if found and not rest.startswith("platform/"):  # the CPU's stand-in for a device
                place = f"{package[1:]}{rest}:{frame.f_lineno}"
                return f"{place} in {frame.f_code.co_name}", waits
        frame = frame.f_back
    return "", waits


def report_path(folder: Path, rank: int, step: int) -> Path:
    return folder / f"hang_step_{step:08d}_rank_{rank:04d}.txt"


def write_report(folder: Path, now: Standing, samples: Sequence[str]) -> Path:
    """The report of this process, with the Python stacks of all its threads; returns its path.

    Raises:
        OSError: it cannot be written.
    """
    lines = [
        f"rank {now.rank}, process {now.process} on {now.host}, {time.strftime('%F %T')}",
        f"in {now.where} for {now.seconds:.0f} s"
        + (f", at {now.frame}" if now.frame else "")
        + (", waiting for other ranks" if now.waits else ""),
        f"last collectives, the latest first: {listed(now.collectives[::-1], 20) or 'none'}",
        f"samples of the step: {listed(list(samples), _MOST_KEYS) or 'not read yet'}",
    ]
    keys = [key for unread in list(phases.readers) for key in unread()]
    if keys:
        lines.append(f"samples being read, the next step's first: {listed(keys, _MOST_KEYS)}")
    lines += _children()
    path = report_path(folder, now.rank, now.step)
    text = "\n".join([*lines, "", _stacks()])
    with suppress(OSError):
        of_workers = stacks_of_workers()
        text += f"\nstacks of the processes that read data:\n{of_workers}" if of_workers else ""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _stacks() -> str:
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _children() -> list[str]:
    """Readers and the like: one that sleeps in `disk-sleep` waits for a disk that hangs."""
    import psutil

    found = []
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                found.append(f"child process {child.pid}: {child.name()}, {child.status()}")
    return found
