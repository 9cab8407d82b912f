"""Killed runs and changed layouts go on exactly where they were."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import small_runs
from helpers.checkpoint_tensors import checkpoint_tensors
from helpers.spawn import kill, metrics, run_or_fail, start_warm
from helpers.warm import Job

STEPS = 8


def arguments(folder: Path, demo_data: Path, *overrides: str) -> list[str]:
    return [
        "train",
        "configs/run/tiny/sft.yaml",
        *small_runs.over(demo_data),
        f"run.dir={folder}",
        f"train.steps={STEPS}",
        "train.global_batch_size=2",
        *small_runs.SHORT_ROWS,
        "train.precision=fp32",
        "model.vision.num_layers=1",
        "checkpoint.every=3",
        "log.tensorboard=false",
        *overrides,
    ]


def ranks(launcher: Job) -> list[int]:
    """The training processes of a torchrun job."""
    children = [child.pid for child in psutil.Process(launcher.pid).children()]
    assert len(children) == 2
    return sorted(children)


@pytest.fixture(scope="module")
def uninterrupted(demo_data: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    options = arguments(folder, demo_data, "parallel.tensor=2")
    run_or_fail(2, *options, log=folder.with_suffix(".log"))
    return folder


def train_until_killed(options: list[str], folder: Path, log: Path, rank: int, steps: int):
    """Start the run, and `kill -9` one rank when it has done `steps` steps and saved the last 3."""
    saved = folder / "checkpoints" / f"step_{steps // 3 * 3:08d}"
    job = start_warm(2, "-m", "nvlm", *options, log=log)
    try:
        deadline = time.monotonic() + 180
        while (
            not (folder / "metrics.jsonl").exists()
            or len(metrics_so_far(folder)) < steps
            or not saved.exists()
        ):
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        os.kill(ranks(job)[rank], signal.SIGKILL)
        assert job.wait(60) != 0
    finally:
        kill(job)


@pytest.mark.parallel
def test_killed_run_ends_bit_equal(uninterrupted, demo_data, tmp_path, fault):
    folder = tmp_path / "run"
    log = tmp_path / "log"
    options = arguments(folder, demo_data, "parallel.tensor=2")
    # Checkpoints are due at steps 3 and 6: each kill loses a step or two.
    train_until_killed(options, folder, log, rank=1, steps=4)
    train_until_killed(options, folder, log, rank=0, steps=7)
    assert not (folder / "checkpoints" / f"step_{STEPS:08d}").exists()
    run_or_fail(2, *options, log=log)
    assert log.read_text().count("resuming") == 2

    ours = checkpoint_tensors(folder / "checkpoints" / "latest")
    truth = checkpoint_tensors(uninterrupted / "checkpoints" / "latest")
    assert ours.keys() == truth.keys()
    assert any(key.startswith("optimizer") for key in truth)
    different = [key for key in truth if not torch.equal(ours[key], truth[key])]
    assert not different
    steps = [(record["step"], record["loss"]) for record in metrics(folder)]
    assert steps == [(record["step"], record["loss"]) for record in metrics(uninterrupted)]
    fault(
        what="a rank is killed (SIGKILL)",
        layout="TP2",
        outcome="torchrun ends the other; started again, the run ends bit-equal",
    )


def metrics_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parallel
@pytest.mark.parametrize(
    "num_processes, layout",
    [
        pytest.param(
            2, ["parallel.pipeline=2", "parallel.virtual_pipeline=2"], id="pipeline2-virtual2"
        ),
        pytest.param(2, [], id="data2", marks=pytest.mark.slow),
        pytest.param(1, [], id="single"),
    ],
)
def test_tensor2_checkpoint_resumes_elsewhere(
    num_processes, layout, uninterrupted, demo_data, tmp_path, measure, request
):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder, symlinks=True)
    for step in (6, STEPS):
        shutil.rmtree(folder / "checkpoints" / f"step_{step:08d}")
    (folder / "checkpoints" / "latest").unlink()
    (folder / "checkpoints" / "latest").symlink_to("step_00000003")
    options = arguments(folder, demo_data, *layout)
    run_or_fail(num_processes, *options, log=tmp_path / "log")
    error = 0.0
    for ours, truth in zip(metrics(folder), metrics(uninterrupted), strict=True):
        assert ours["step"] == truth["step"]
        assert ours["tokens"] == truth["tokens"]
        error = max(error, abs(ours["loss"] - truth["loss"]) / truth["loss"])
    layout_name = request.node.callspec.id
    measure(f"loss of a step, resumed at {layout_name}", "an uninterrupted TP2 run", error, 1e-5)
