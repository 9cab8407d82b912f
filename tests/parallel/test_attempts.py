"""Processes that torchrun starts again share its store with those before, and take none of it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import restarting, spawn
from torch.distributed import TCPStore

from nvlm.parallel import attempt


def agree(store: TCPStore, world_size: int, come: range | None = None) -> list[str]:
    with ThreadPoolExecutor(world_size) as pool:
        ranks = come or range(world_size)
        asked = [
            pool.submit(attempt.agree_on_name, store.clone(), rank, world_size) for rank in ranks
        ]
        return [future.result(timeout=60) for future in asked]


def test_each_attempt_has_a_name_of_its_own():
    """Whatever its size, and whatever the ones before left in the store."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    names = [agree(store, world_size) for world_size in (3, 3, 2, 4, 3)]
    assert all(len(set(of_attempt)) == 1 for of_attempt in names)
    assert len({of_attempt[0] for of_attempt in names}) == len(names)


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch):
    from datetime import timedelta

    from nvlm.errors import NvlmError

    monkeypatch.setattr(attempt, "COLLECTIVE_TIMEOUT", timedelta(seconds=1))
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(NvlmError, match=r"ranks 1, 3 have not come to the run's store"):
        agree(store, 4, range(0, 3, 2))


@pytest.mark.slow
@pytest.mark.parallel
def test_torchrun_starts_processes_again(tmp_path: Path):
    """The first attempt fails on one rank after both have met; the second goes its whole way."""
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    program = [str(Path(restarting.__file__)), str(tmp_path)]
    job = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *program],
        env=spawn.environment(),
        start_new_session=True,
    )
    try:
        assert job.wait(120) == 0
    finally:
        spawn.kill(job)
    whole_way = ["found by 0", "met", "sum 3"]
    for rank in range(2):
        assert (tmp_path / f"attempt0-rank{rank}").read_text().splitlines() == whole_way
        assert (tmp_path / f"attempt1-rank{rank}").read_text().splitlines() == whole_way
