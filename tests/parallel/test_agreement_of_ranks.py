"""What some ranks find out before any process group exists reaches all of them."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import agreeing, spawn


def run_ranks(folder: Path, launcher: str, *rounds: str) -> list[list[str]]:
    """What each of three ranks got in each round."""
    program = [str(Path(agreeing.__file__)), str(folder), *rounds]
    if launcher == "torchrun":
        options = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
        commands = [([sys.executable, *options, *program], spawn.environment())]
    else:
        # As a cluster's own launcher starts them: rank 0 holds the store.
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        place = {"WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        commands = [
            ([sys.executable, *program], {**spawn.environment(), **place, "RANK": str(rank)})
            for rank in range(3)
        ]
    jobs = [
        subprocess.Popen(command, env=environment, start_new_session=True)
        for command, environment in commands
    ]
    try:
        assert [job.wait(120) for job in jobs] == [0] * len(jobs)
    finally:
        for job in jobs:
            spawn.kill(job)
    return [(folder / f"rank{rank}").read_text().splitlines() for rank in range(3)]


@pytest.mark.parallel
@pytest.mark.parametrize("launcher", ["torchrun", "own"])
def test_values_and_failures(launcher: str, tmp_path: Path):
    # Nobody fails, then one does: the slower of the two that look.
    assert run_ranks(tmp_path, launcher, "-", "2") == [
        ["found by 0 in round 0", "failed: nothing in round 1"],
        ["None", "failed: nothing in round 1"],
        ["found by 2 in round 0", "failed: nothing in round 1"],
    ]
