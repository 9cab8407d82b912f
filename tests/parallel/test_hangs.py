"""A run in which one rank stands still ends in time, and names that rank and where it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from helpers import hanging_ranks, small_runs, spawn

from nvlm.train.events import read_events

pytestmark = pytest.mark.parallel
# The first step may take three times as long.
HANG_MINUTES = 0.05


def run_hanging(
    what: str, rank: int, num_processes: int, demo_data: Path, folder: Path, *more: str
) -> str:
    """What the run printed; it ends by itself, with a code that is not 0."""
    arguments = [
        "train",
        "configs/run/tiny/sft.yaml",
        *small_runs.over(demo_data),
        "data.blend={digits: 1}",
        "data.num_workers=0",
        "checkpoint.load=random",
        "train.steps=4",
        f"train.global_batch_size={min(num_processes, 2)}",  # a micro-batch a step
        "log.tensorboard=false",
        "model.vision.num_layers=1",
        "model.language.num_layers=2",
        f"run.hang_minutes={HANG_MINUTES}",
        f"run.dir={folder / 'run'}",
        *more,
    ]
    program = (hanging_ranks.__file__, what, str(rank), *arguments)
    started = time.monotonic()
    code = spawn.run_program(num_processes, *program, log=folder / "log", timeout_seconds=200)
    printed = (folder / "log").read_text()
    assert code != 0, printed
    # Of a rank that hears nothing, torchrun would wait half a minute for the end alone.
    assert "Sending process" not in printed or "closing signal SIGKILL" not in printed
    print(f"{what}: {time.monotonic() - started:.0f} s")
    return printed


def check(printed: str, folder: Path, rank: int, num_processes: int, where: str, *details: str):
    """One line names the rank, and every rank has a report."""
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: step 2: nothing has moved for ")
    assert f": rank {rank} " in line
    for detail in (where, *details):
        assert detail in line, line
    reports = folder / "run" / "reports"
    texts = {
        number: (reports / f"hang_step_00000002_rank_{number:04d}.txt").read_text()
        for number in range(num_processes)
    }
    for number, text in texts.items():
        if number != rank:
            assert f"rank {number}, process " in text
            assert "last collectives, the latest first: none" not in text
            assert "most recent call first" in text
            assert "in take_step" in text or "in next_step_batch" in text
            is_there = "in handing the batch to the replica" not in text
            assert ("samples of the step: digits/train-digits-" in text) == is_there
    (event,) = [event for event in read_events(folder / "run") if event.kind == "hang"]
    assert event.step == 2
    assert event.text in line
    assert not (folder / "run" / ".owners").exists() or "no sign of life" in line
    return texts[rank]


def test_rank_0_is_stopped(demo_data: Path, tmp_path: Path, fault):
    printed = run_hanging("stopped", 0, 2, demo_data, tmp_path)
    where = "gives no sign of life: process "
    details = ["it was stopped by a signal (SIGSTOP)", "while rank 1 waits in the gradient all-re"]
    report = check(printed, tmp_path, 0, 2, where, *details)
    assert "stopped by a signal" in report
    outcome = "the run ends after run.hang_minutes; one line names the rank and that it is stopped"
    fault(what="a rank is stopped (SIGSTOP)", layout="DP2", outcome=outcome)


def test_a_reading_process_hangs(demo_data: Path, tmp_path: Path, fault):
    """In the process that reads for it."""
    printed = run_hanging("reader", 0, 1, demo_data, tmp_path, "data.num_workers=1")
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "it is in data reading of step 2 (nvlm/" in line
    (report,) = (tmp_path / "run" / "reports").iterdir()
    text = report.read_text()
    assert "samples of the step: not read yet" in text
    assert "samples being read, the next step's first: digits/train-digits-" in text
    _, _, of_worker = text.partition("stacks of the processes that read data:")
    assert "in sleep" in of_worker and "in __getitem__" in of_worker
    assert not (tmp_path / "run" / ".owners").exists()
    outcome = "the run ends after run.hang_minutes; a report has the samples and the stacks"
    fault(what="the disk hangs while samples are read", layout="one process", outcome=outcome)


CASES = {
    "reader": ("is in data reading of step 2 (nvlm/data/loading/reader.py:", "TP2 x DP2", 2),
    "forward": ("is in the forward pass of micro-batch 0 of step 2 (", "PP2 x DP2", 3),
    "computing": ("gives no sign of life: process ", "PP2 x DP2", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CASES)
def test_one_of_four_ranks_hangs(what, demo_data: Path, tmp_path: Path, fault):
    where, layout, rank = CASES[what]
    parallel = "parallel.tensor=2" if layout.startswith("TP") else "parallel.pipeline=2"
    printed = run_hanging(what, rank, 4, demo_data, tmp_path, parallel)
    report = check(printed, tmp_path, rank, 4, where, "while the others wait in ")
    if what == "computing":
        assert "it computes without letting Python's other threads run" in report
        stacks = tmp_path / "run" / "reports" / f"stacks_rank_{rank:04d}.txt"
        assert "hanging_ranks.py" in stacks.read_text()
    else:
        assert "in sleep" in report
    outcome = "the run ends after run.hang_minutes; one line names the rank and where it is"
    words = {
        "reader": "a rank hangs in reading",
        "forward": "a rank hangs in the forward pass",
        "computing": "a rank computes without end and holds Python's lock",
    }
    fault(what=words[what], layout=layout, outcome=outcome)
