"""Events of a run: added to one file by the main process, read although a line was cut off."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest

from nvlm.train.events import EVENTS_FILE, note_event, read_events, write_event


def write_many(folder: Path, step: int) -> None:
    for number in range(200):
        write_event(folder, "spike", step, "x" * 300, number=number)


def test_events_are_added_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert list(read_events(tmp_path)) == []
    note_event(tmp_path, "save", 3, "saved step 3", seconds=1.5)
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('{"time": 1, "step": 4, "ki\n')
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    note_event(tmp_path, "stop", 4, "another process than the main one")
    write_event(tmp_path, "hang", 5, "nothing moves", rank=0)
    events = list(read_events(tmp_path))
    assert [(event.step, event.kind, event.text) for event in events] == [
        (3, "save", "saved step 3"),
        (5, "hang", "nothing moves"),
    ]
    assert events[0].fields == {"seconds": 1.5}
    assert events[0].time <= events[1].time


def test_processes_that_write_at_once_do_not_mix_their_lines(tmp_path: Path):
    context = get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, step)) for step in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    events = list(read_events(tmp_path))
    assert len(events) == 600
    for step in range(3):
        assert [e.fields["number"] for e in events if e.step == step] == list(range(200))
