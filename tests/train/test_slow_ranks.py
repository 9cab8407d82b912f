"""A data rank that is slower than the others is named, with its machine and device."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from helpers import hanging_ranks, small_runs, spawn

from nvlm.train.events import read_events
from nvlm.train.slow_ranks import Pace, describe, find_slow


def pace(data_rank: int, seconds: float, ranks: list[int] | None = None) -> Pace:
    return Pace(data_rank, ranks or [data_rank], "node4", "NVIDIA H100", seconds, 0.25)


def test_slower_than_the_others_by_a_factor():
    paces = [pace(0, 1.0), pace(1, 1.29), pace(2, 1.02), pace(3, 1.9)]
    assert [slow.data_rank for slow in find_slow(paces, 1.3)] == [3]
    assert [slow.data_rank for slow in find_slow(paces, 1.2)] == [3, 1]
    assert find_slow(paces[:1], 1.3) == []
    # Of two, the slower one is compared with the other alone.
    assert [slow.data_rank for slow in find_slow(paces[2:], 1.3)] == [3]


def test_a_replica_is_named_as_a_whole():
    assert describe(pace(3, 1.9, [6, 7]), 1.01, 50) == (
        "slow: data rank 3 (ranks 6, 7) on node4, NVIDIA H100, takes 1.9 s a step for its own work "
        "(0.25 s of it reading), the median data rank 1.01 s, over 50 steps"
    )


@pytest.mark.parallel
def test_a_slow_rank_of_a_run(demo_data: Path, tmp_path: Path, fault):
    arguments = [
        "train",
        "configs/run/tiny/sft.yaml",
        *small_runs.over(demo_data),
        "data.blend={digits: 1}",
        "data.num_workers=0",
        "checkpoint.load=random",
        "train.steps=6",
        "train.global_batch_size=2",
        "log.tensorboard=false",
        "log.slow_rank_steps=2",
        "log.slow_rank_factor=1.5",
        "model.vision.num_layers=1",
        "model.language.num_layers=2",
        f"run.dir={tmp_path / 'run'}",
    ]
    program = (hanging_ranks.__file__, "slow", "1", *arguments)
    printed = spawn.run_program_or_fail(2, *program, log=tmp_path / "log")
    (line,) = [line for line in printed.splitlines() if line.startswith("slow: ")]
    assert f"rank 1 on {socket.gethostname()}, CPU (1 thread), takes " in line
    (event,) = [event for event in read_events(tmp_path / "run") if event.kind == "slow_rank"]
    assert (event.text, event.fields["ranks"]) == (line, [1])
    assert event.step in (4, 6)
    outcome = "one line and an event name the rank, its machine and its device"
    fault(what="a rank is slow", layout="DP2", outcome=outcome)
