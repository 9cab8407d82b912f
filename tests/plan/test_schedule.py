"""The simulated schedule: its order is Megatron-core's own, its times are what is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import schedule_events, spawn

from nvlm.plan.schedule import Pass, most_kept, simulate, stage_order

LAYOUTS = {
    (4, 1): ["parallel.pipeline=4", "model.language.num_layers=4"],
    (2, 2): ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "model.language.num_layers=4"],
    (4, 2): ["parallel.pipeline=4", "parallel.virtual_pipeline=2", "model.language.num_layers=8"],
}


@pytest.mark.parallel
def test_order_is_megatrons(tmp_path: Path):
    """Of every rank, recorded while the small model trains on four processes."""
    layouts = {json.dumps(layout): overrides for layout, overrides in LAYOUTS.items()}
    num_micro_batches = schedule_events.NUM_MICRO_BATCHES
    program = ("-m", "helpers.schedule_events", tmp_path, json.dumps(layouts))
    spawn.run_program_or_fail(4, *program, log=tmp_path / "log")
    for rank in range(4):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for name, (stage, passes) in found.items():
            num_stages, num_chunks = json.loads(name)
            order = stage_order(stage, num_stages, num_chunks, num_micro_batches)
            assert [Pass(*one) for one in passes] == order, (rank, name)


@pytest.mark.parametrize("num_stages, num_chunks", [(1, 1), (4, 1), (4, 2), (8, 5)])
def test_equal_stages_idle_as_the_formula_says(num_stages: int, num_chunks: int):
    """(stages - 1) / (micro-batches x chunks) of the time with passes (Megatron-LM, arXiv
    2104.04473)."""
    forward, backward, num = 1.0 / num_chunks, 2.0 / num_chunks, 4 * num_stages
    result = simulate(
        [[forward] * num_chunks] * num_stages, [[backward] * num_chunks] * num_stages, num, 0.0
    )
    assert result.busy == pytest.approx([3.0 * num] * num_stages)
    bubble = result.seconds / result.busy[0] - 1
    assert bubble == pytest.approx((num_stages - 1) / (num * num_chunks))


def test_the_slowest_stage_decides_in_the_long_run():
    """It waits for its first forward pass, and once for the last stage, and the first stage's
    last backward pass comes after it."""
    forward, backward = [[1.0], [2.0], [1.0]], [[2.0], [4.0], [2.0]]
    assert simulate(forward, backward, 100, 0.0).seconds == pytest.approx(1 + 1 + 100 * 6 + 2)


def test_messages_take_their_time():
    """To the last stage and back, once, where nothing else waits."""
    alone = [[1.0]] * 3
    assert simulate(alone, alone, 1, 0.25).seconds == pytest.approx(6 + 4 * 0.25)
    assert simulate([[1.0]], [[1.0]], 5, 0.25).seconds == pytest.approx(10)


def test_most_kept():
    """1F1B keeps a micro-batch per stage that follows, and its own; the last one alone."""
    kept = [most_kept(stage_order(stage, 4, 1, 8), [1.0]) for stage in range(4)]
    assert kept == [4, 3, 2, 1]
    # By hand for two stages of two chunks: the first has four passes ahead and one more.
    assert most_kept(stage_order(0, 2, 2, 4), [1.0, 1.0]) == 5
    # Fewer micro-batches than stages.
    assert most_kept(stage_order(0, 4, 1, 2), [3.0]) == 6
