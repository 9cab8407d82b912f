"""A process that waits where it hears nothing ends when another has failed, or the store."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import spawn

from nvlm import reports
from nvlm.ending import SECONDS_TO_END
from nvlm.parallel import watch

# Shorter times than real ones. It waits as a collective does: in C++, which no signal interrupts.
PROGRAM = """
import sys
from torch.distributed import TCPStore
from nvlm.ending import become_program
from nvlm.parallel import signals, watch
watch.SECONDS_BETWEEN_LOOKS = watch._SECONDS_FOR_OTHERS = 0.3
watch._SECONDS_TO_COME_BACK = watch._SECONDS_WITHOUT_LIFE = signals.SECONDS_TO_END = 1
become_program()
signals.stop_on_signals()
watch.watch_others()
print("waiting", flush=True)
TCPStore("localhost", int(sys.argv[1]), is_master=False, wait_for_workers=False).get("never")
"""


def start_waiting(port: int, of_store: int, log: Path) -> subprocess.Popen:
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port)],
        env=spawn.environment() | place | {"MASTER_PORT": str(of_store)},
        stdout=subprocess.PIPE,
        stderr=log.open("wb"),
        start_new_session=True,
    )


@pytest.mark.parallel
def test_a_waiting_process_ends_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torch.distributed import TCPStore

    stores = [TCPStore("localhost", 0, is_master=True, wait_for_workers=False) for _ in range(3)]
    ports = [store.port for store in stores]
    logs = [tmp_path / "failure", tmp_path / "store"]
    jobs = [start_waiting(ports[2], port, log) for port, log in zip(ports[:2], logs, strict=True)]
    try:
        for job in jobs:
            assert job.stdout is not None and job.stdout.readline() == b"waiting\n"
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(ports[0]))
        monkeypatch.setattr(socket, "gethostname", lambda: "node7")
        reports.report("the disk is full")
        del stores[1]
        gc.collect()
        assert [job.wait(30) for job in jobs] == [143, 143]
    finally:
        for job in jobs:
            spawn.kill(job)
    because = "this process ends because of "
    assert logs[0].read_text() == f"{because}rank 0 on node7: the disk is full\n"
    gone = f"{because}the run's store at localhost:{ports[1]}, which torchrun or rank 0 holds, is "
    assert gone in logs[1].read_text()


@pytest.mark.parallel
def test_a_process_whose_neighbour_gives_no_sign_of_life_ends(tmp_path: Path):
    """Rank 0 has shown life once, and is gone with its machine, without a word."""
    from torch.distributed import TCPStore

    stores = [TCPStore("localhost", 0, is_master=True, wait_for_workers=False) for _ in range(2)]
    stores[0].add("nvlm/start0/alive/0", 1)
    job = start_waiting(stores[1].port, stores[0].port, tmp_path / "log")
    try:
        assert job.wait(60) == 143
    finally:
        spawn.kill(job)
    assert "rank 0 has given no sign of life for " in stores[0].get("nvlm/start0/ended").decode()


def test_time_in_which_it_did_not_listen_does_not_count(monkeypatch: pytest.MonkeyPatch):
    """As when the whole job is suspended for an hour, or a laptop sleeps."""
    now = [1000.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(watch, "signs_of_life", lambda store, rank: 7)
    monkeypatch.setattr(watch, "report", lambda what: None)
    monkeypatch.setattr(watch, "look", lambda store: "ends")
    neighbour = watch._Neighbour(1)
    assert neighbour.look(None) is None
    now[0] += 3600
    assert neighbour.look(None) is None
    ends = []
    while not ends:
        now[0] += watch.SECONDS_BETWEEN_LOOKS
        ends = [found for found in [neighbour.look(None)] if found]
    # The hour counts as two looks.
    silent_seconds = now[0] - 1000 - 3600 + 2 * watch.SECONDS_BETWEEN_LOOKS
    assert silent_seconds == pytest.approx(watch._SECONDS_WITHOUT_LIFE)


def test_the_real_times_are_under_half_a_minute():
    seconds = reports.SECONDS_BETWEEN_LOOKS + watch._SECONDS_FOR_OTHERS + SECONDS_TO_END
    assert seconds < 30
