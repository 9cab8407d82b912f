"""A grid of six cells with two seeds that is killed twice gives the table of one that is not."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from helpers.grids import start_soon, table, write_grid
from helpers.spawn import kill, metrics, start

from nvlm.ablate.grid import ablate

STEPS = 6
AXES = {
    "tags": {"none": {"stage.tile_tags": "none"}, "2d_grid": {"stage.tile_tags": "2d_grid"}},
    "tiles": {"one": {"stage.max_num_tiles": 1}, "two": {"stage.max_num_tiles": 2}},
    "lr": {"high": {"train.optimizer.lr": 0.003}},
}


def wait_for(folder: Path, num_finished: int, grid) -> None:
    """Until so many runs are done, and another one is between its first step and its last."""
    deadline = time.monotonic() + 400
    while True:
        assert time.monotonic() < deadline and grid.poll() is None
        lengths = [
            len(path.read_text().splitlines()) for path in folder.glob("cells/*/*/metrics.jsonl")
        ]
        if lengths.count(STEPS) >= num_finished and any(0 < n < STEPS for n in lengths):
            return
        time.sleep(0.05)


def trained_steps(folder: Path) -> dict[str, list[int]]:
    return {
        str(path.parent.relative_to(folder)): [line["step"] for line in metrics(path.parent)]
        for path in folder.glob("cells/*/*/metrics.jsonl")
    }


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.timeout(1500)
def test_a_grid_that_is_killed_twice_gives_the_same_table(demo_data: Path, tmp_path: Path, fault):
    values = {"axes": AXES, "seeds": [1, 2]}
    undisturbed = write_grid(tmp_path / "undisturbed.yaml", demo_data, **values)
    killed = write_grid(tmp_path / "killed.yaml", demo_data, **values)
    more = [f"train.steps={STEPS}", "checkpoint.every=2"]
    ablate(str(undisturbed), None, more, 2, start_soon)
    expected = table(tmp_path / "cells_of_undisturbed")

    folder, log = tmp_path / "cells_of_killed", tmp_path / "log"
    command = ["ablate", str(killed), "--jobs", "2", *more]
    grid = start(1, *command, log=log)
    try:
        # First the grid alone: what it started ends by itself.
        wait_for(folder, 1, grid)
        children = psutil.Process(grid.pid).children(recursive=True)
        os.kill(grid.pid, signal.SIGKILL)
        grid.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        # Then all of it at one moment.
        grid = start(1, *command, log=log)
        wait_for(folder, 5, grid)
        processes = [*psutil.Process(grid.pid).children(recursive=True), psutil.Process(grid.pid)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=20)
        grid.wait()
        grid = start(1, *command, log=log)
        assert grid.wait(900) == 0, log.read_text()[-4000:]
    finally:
        kill(grid)
    steps = trained_steps(folder)
    assert len(steps) == 12 and all(s == list(range(1, STEPS + 1)) for s in steps.values())
    found = table(folder)
    assert found == expected
    ranks = [cell["rank"] for cell in found["cells"]]
    assert ranks == [1, 2, 3, 4, 5, 6]
    resumed = [path for path in folder.glob("cells/*/*.log") if "resum" in path.read_text()]
    assert resumed, "no run went on from a checkpoint"
    assert json.loads((folder / "results.json").read_text())["failures"] == []
    fault(
        what="a grid of ablations and all that it started are killed (SIGKILL)",
        layout="one process",
        outcome="the same command goes on, gives the table of an undisturbed grid",
    )
