"""What happened to a run besides its steps: `events.jsonl` in its folder, one line each.

    time    seconds since 1970          step    the last step that was taken by then
    kind    one of `KINDS`              text    the same for people, one line
    fields  numbers and names of that kind

Lines are only ever added, also by a run that resumes: steps that run again have their events twice.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nvlm.files import json_line
from nvlm.launch import launched

EVENTS_FILE = "events.jsonl"
# Kind -> what it is.
KINDS = {
    "start": "the run's first step is about to be taken",
    "resume": "the run goes on from a checkpoint",
    "save": "a checkpoint was written",
    "save_failed": "a checkpoint could not be written in the background, and the run went on",
    "stop": "the run was asked to stop, and did",
    "end": "the last step is done",
    "spike": "a step's loss or gradient norm jumped (train.on_spike)",
    "skip": "a step's update was left out because of a spike",
    "not_finite": "a loss or gradient was not finite, and the run ended",
    "slow_rank": "a rank took longer for its work than its peers",
    "hang": "nothing moved for run.hang_minutes, and the run ended",
    "failure": "the run ended with an error",
}


@dataclass(frozen=True)
class Event:
    """A line of `events.jsonl`."""

    time: float
    step: int
    kind: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


def note_event(run_dir: Path | str, kind: str, step: int, text: str, **fields: Any) -> None:
    """Add an event to the run's file; every process may call this, and the main one writes.

    Raises:
        OSError: the file cannot be written.
    """
    if launched().rank == 0:
        write_event(run_dir, kind, step, text, **fields)


def write_event(run_dir: Path | str, kind: str, step: int, text: str, **fields: Any) -> None:
    """`note_event` by whichever process calls this, where the main one cannot."""
    assert kind in KINDS, kind
    event = Event(round(time.time(), 3), step, kind, text, fields)
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    # In one write at the end of the file: threads and processes do not mix their lines.
    descriptor = os.open(
        Path(run_dir) / EVENTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, mode=0o666
    )
    try:
        os.write(descriptor, json_line(asdict(event)).encode())
    finally:
        os.close(descriptor)


def read_events(run_dir: Path | str) -> Iterator[Event]:
    """The run's events, the oldest first; a line that a kill or a full disk cut off is left out.

    Raises:
        OSError: the file is there and cannot be read.
    """
    path = Path(run_dir) / EVENTS_FILE
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield Event(**json.loads(line))
        except (ValueError, TypeError):
            continue


def last_event(run_dir: Path | str) -> Event | None:
    """The run's newest event; raises what `read_events` does."""
    newest = deque(read_events(run_dir), maxlen=1)
    return newest[0] if newest else None
