"""Runs of a small model that are stopped or killed on their way, and their comparison."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from helpers import small_runs
from helpers.checkpoint_tensors import checkpoint_tensors
from helpers.spawn import kill, metrics, start_warm
from helpers.warm import Job


def arguments(folder: Path, demo_data: Path, steps: int, *overrides: str) -> list[str]:
    """Of `nvlm train`: a run in `folder` that takes parts of a second for a step."""
    return [
        "train",
        "configs/run/tiny/sft.yaml",
        *small_runs.over(demo_data),
        "data.blend={digits: 1, text: 1}",
        "data.num_workers=1",
        f"run.dir={folder}",
        "checkpoint.load=random",
        f"train.steps={steps}",
        "train.global_batch_size=4",
        "train.precision=fp32",
        "model.vision.num_layers=1",
        "model.language.num_layers=2",
        "log.tensorboard=false",
        *overrides,
    ]


def num_steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def ranks(job: Job, num_processes: int) -> list[int]:
    """Numbers of the training processes, by their ranks."""
    if num_processes == 1:
        return [job.pid]
    return sorted(child.pid for child in psutil.Process(job.pid).children())


def run_until(
    num_processes: int,
    options: list[str],
    folder: Path,
    log: Path,
    act: Callable[[Job], object] | None,
    more_steps: int = 1,
) -> int:
    """Start a run, `act` on it after so many further steps, and return its exit code."""
    done = num_steps(folder)
    job = start_warm(num_processes, "-m", "nvlm", *options, log=log)
    try:
        deadline = time.monotonic() + 180
        while act is not None and num_steps(folder) < done + more_steps:
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        if act is not None:
            act(job)
        return job.wait(120)
    finally:
        kill(job)


def send(number: signal.Signals, num_processes: int = 1, rank: int | None = None) -> Callable:
    """An act: a signal to what was started, or to one of its ranks."""

    def act(job: Job) -> None:
        target = job.pid if rank is None else ranks(job, num_processes)[rank]
        os.kill(target, number)

    return act


def losses(folder: Path) -> list[tuple[int, int, float]]:
    """(step, trained tokens, loss) of every record."""
    return [(record["step"], record["tokens"], record["loss"]) for record in metrics(folder)]


def assert_bit_equal(folder: Path, truth: Path) -> None:
    """Losses of every step, none missing or twice, and all that the last checkpoint holds."""
    assert losses(folder) == losses(truth)
    ours, theirs = (checkpoint_tensors(run / "checkpoints" / "latest") for run in (folder, truth))
    assert ours.keys() == theirs.keys() and any(key.startswith("optimizer") for key in theirs)
    assert not [key for key in theirs if not torch.equal(ours[key], theirs[key])]
