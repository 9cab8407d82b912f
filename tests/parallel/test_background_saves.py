"""What is written while training goes on is what would have been written at once."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import background_saves, slow_writes, small_runs, spawn
from helpers.background_saves import COPY_SECONDS, LAYOUTS, STEPS
from helpers.checkpoint_tensors import checkpoint_tensors

from nvlm.checkpoint_files import changed, find_damage

pytestmark = pytest.mark.parallel


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("background")


@pytest.fixture(scope="module")
def found(folder) -> dict:
    printed = spawn.run_program_or_fail(2, background_saves.__file__, folder, log=folder / "log")
    (line,) = [line for line in printed.splitlines() if line.startswith('{"tensor2"')]
    return json.loads(line)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saves_beside_training_have_the_bits_of_saves_at_once(layout, found, folder):
    assert all(found[layout]["alive"]), "nothing was written while training went on"
    assert min(found[layout]["waited"]) > COPY_SECONDS / 10, "an update did not wait for copies"
    before = None
    for step in STEPS:
        ours, truth = (
            folder / layout / way / "checkpoints" / f"step_{step:08d}"
            for way in ("background", "at_once")
        )
        assert find_damage(ours) is None and changed(ours) is None
        assert json.loads((ours / "progress.json").read_text()) == json.loads(
            (truth / "progress.json").read_text()
        )
        written, expected = checkpoint_tensors(ours), checkpoint_tensors(truth)
        assert written.keys() == expected.keys()
        assert not [key for key in expected if not torch.equal(written[key], expected[key])]
        common, common_truth = (
            torch.load(path / "common.pt", weights_only=False) for path in (ours, truth)
        )
        assert str(common) == str(common_truth)
        # What was written differs from step to step, so that equal bits mean something.
        assert before is None or any(
            not torch.equal(written[key], before[key]) for key in written if "exp_avg" in key
        )
        before = written
    checkpoints = folder / layout / "background" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {
        "latest",
        *(f"step_{step:08d}" for step in STEPS),
    }
    assert (checkpoints / "latest").resolve().name == f"step_{max(STEPS):08d}"


def test_ranks_agree_after_which_steps_the_time_is_up(found):
    assert found["due"] == [[10, 20, 30]] * 2


def test_a_run_killed_while_it_writes_goes_on_from_the_checkpoint_before(
    demo_data, tmp_path, fault
):
    folder, log = tmp_path / "run", tmp_path / "log"
    options = [
        "configs/run/tiny/sft.yaml",
        *small_runs.over(demo_data),
        f"run.dir={folder}",
        "model.vision.num_layers=1",
        "model.language.num_layers=1",
        "data.num_workers=0",
        "train.steps=7",
        "train.global_batch_size=2",
        *small_runs.SHORT_ROWS,
        "checkpoint.every=2",
        "log.tensorboard=false",
    ]
    checkpoints = folder / "checkpoints"
    job = spawn.start_warm(2, slow_writes.__file__, "4", *options, log=log)
    try:
        deadline = time.monotonic() + 180
        # Training goes on while step 4 is written, until step 6 is to be saved.
        while not (folder / "metrics.jsonl").exists() or len(spawn.metrics(folder)) < 6:
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        for rank in psutil.Process(job.pid).children():
            os.kill(rank.pid, signal.SIGKILL)
        assert job.wait(60) != 0
    finally:
        spawn.kill(job)
    assert (checkpoints / ".step_00000004.writing").is_dir()
    assert (checkpoints / "latest").resolve().name == "step_00000002"

    spawn.run_or_fail(1, "train", *options, log=tmp_path / "log again")
    said = (tmp_path / "log again").read_text()
    assert f"resuming {checkpoints}/step_00000002 at step 2" in said
    assert "step_00000004.writing: half-written by a run that was killed, removed" in said
    assert {path.name for path in checkpoints.iterdir()} == {
        "latest",
        *(f"step_{step:08d}" for step in (2, 4, 6, 7)),
    }
    assert [record["step"] for record in spawn.metrics(folder)] == list(range(1, 8))
    fault(
        what="a run is killed (SIGKILL) while it writes a checkpoint in the background",
        layout="DP2",
        outcome="the next run goes on from the checkpoint before, and removes the half-written one",
    )
