"""Forked workers: what they inherit, and how they end."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from nvlm.errors import DataError
from nvlm.workers import map_forked


@pytest.mark.parametrize("num_processes", [1, 2])
def test_results_come_with_their_items(num_processes: int):
    unpicklable = {number: lambda number=number: number**2 for number in range(20)}

    def work(item: int) -> tuple[int, int]:
        return unpicklable[item](), os.getpid()

    found = dict(map_forked(work, range(20), num_processes, "a process"))
    assert {item: square for item, (square, _) in found.items()} == {n: n**2 for n in range(20)}
    assert {pid == os.getpid() for _, pid in found.values()} == {num_processes == 1}


def test_what_a_worker_raises_is_raised_and_the_rest_is_not_started(tmp_path: Path):
    def work(item: int) -> None:
        (tmp_path / str(item)).touch()
        if item == 0:
            raise DataError("wrong")

    with (
        pytest.raises(DataError, match="wrong"),
        closing(map_forked(work, range(10_000), 2, "a process")) as results,
    ):
        list(results)
    assert len(list(tmp_path.iterdir())) < 10_000


def test_a_killed_worker_is_named_as_the_cause():
    def work(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"PLACE: a process was killed.*same command again"):
        list(map_forked(work, range(3), 2, "PLACE: a process"))


def test_it_ticks_while_workers_are_busy():
    ticks = []
    list(map_forked(time.sleep, [0.7, 0.7], 2, "a process", lambda: ticks.append(1)))
    assert ticks


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    code = (
        "import os, pathlib, sys, time; from nvlm.workers import map_forked\n"
        "def work(item):\n"
        f"    path = pathlib.Path({str(tmp_path)!r}, str(os.getpid())); path.touch()\n"
        "    time.sleep(600)\n"
        "list(map_forked(work, range(2), 2, 'a process'))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    while len(workers := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
