"""However a run ends, none of its processes stays, and the next start goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from helpers import small_runs
from helpers.spawn import kill, metrics, start

from nvlm.stop_requests import STOPPED

STEPS = 40


def arguments(folder: Path, demo_data: Path, *overrides: str) -> list[str]:
    return [
        "train",
        "configs/run/tiny/sft.yaml",
        *small_runs.over(demo_data),
        f"run.dir={folder}",
        f"train.steps={STEPS}",
        "train.global_batch_size=2",
        *small_runs.SHORT_ROWS,
        "checkpoint.every=2",
        "data.num_workers=1",
        *overrides,
    ]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that was started, directly or not, for the run in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("NVLM_TEST_RUN") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(is_true: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def num_steps(folder: Path) -> int:
    return len(metrics(folder)) if (folder / "metrics.jsonl").exists() else 0


@pytest.mark.parallel
def test_nothing_is_left_of_a_killed_or_stopped_run(demo_data, tmp_path, monkeypatch, fault):
    folder, log = tmp_path / "run", tmp_path / "log"
    monkeypatch.setenv("NVLM_TEST_RUN", str(folder))
    options = arguments(folder, demo_data)
    saved = folder / "checkpoints" / "step_00000002"
    job = start(2, *options, log=log)
    try:
        wait_until(saved.exists, 180, log.read_text)
        assert len(processes_of(folder)) > 3  # torchrun, two ranks, their loaders' workers
        # Only the launcher: its ranks learn of it by themselves.
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        wait_until(lambda: not processes_of(folder), 20, lambda: str(processes_of(folder)))
    finally:
        kill(job)
    assert num_steps(folder) < STEPS
    assert not (folder / ".owners").exists()
    fault(
        what="torchrun is killed (SIGKILL)",
        layout="DP2",
        outcome="its ranks and their workers end within 20 s, and leave the folder",
    )

    log.write_text("")
    job = start(1, *options, log=log)
    try:
        wait_until(lambda: "saved" in log.read_text(), 180, log.read_text)
        os.kill(job.pid, signal.SIGTERM)
        assert job.wait(60) == STOPPED
        wait_until(lambda: not processes_of(folder), 20, lambda: str(processes_of(folder)))
    finally:
        kill(job)
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("stopped by SIGTERM after step ")
    assert "Traceback" not in log.read_text()
    assert not (folder / ".owners").exists()
    steps = [record["step"] for record in metrics(folder)]
    assert steps == list(range(1, len(steps) + 1))
