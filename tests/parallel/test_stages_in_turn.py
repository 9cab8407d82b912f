"""Stages of one file, each at a layout of its own, are the runs that one would start by hand."""

from __future__ import annotations

import json
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
from helpers.paths import REPOSITORY
from helpers.spawn import kill, metrics, run, run_or_fail, start_warm

pytestmark = pytest.mark.parallel

STEPS = 3
TINY = REPOSITORY / "configs" / "run" / "tiny"
# Stage -> the run that it is built on, its layout on two processes.
STAGES = {
    "pretrain": ("pretrain", "parallel.tensor=2"),
    "sft": ("sft", "parallel.pipeline=2"),
    "more": ("sft", "parallel.vision=tensor"),  # data parallelism
}
FILE = "run: {name: all, dir: all}\nstages:\n" + "".join(
    f"  {stage}: {{base: {TINY}/{base}.yaml}}\n" for stage, (base, _) in STAGES.items()
)


@pytest.fixture(scope="module")
def common(demo_data: Path, tmp_path_factory) -> list[str]:
    """What all stages and runs here are given."""
    return [
        f"data.root={demo_data}",
        "data.blend={digits: 1, text: 1}",
        f"data.index_dir={tmp_path_factory.mktemp('index')}",
        f"train.steps={STEPS}",
        "train.global_batch_size=2",
        *small_runs.SHORT_ROWS,
        "model.vision.num_layers=1",
        "model.language.num_layers=2",
        "checkpoint.every=2",
        "log.tensorboard=false",
    ]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("file") / "stages.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def by_hand(common: list[str], tmp_path_factory) -> Path:
    """One command for each stage."""
    folder = tmp_path_factory.mktemp("by_hand")
    load = "random"
    for stage, (base, layout) in STAGES.items():
        options = [f"run.dir={folder / stage}", f"checkpoint.load={load}", *common, layout]
        run_or_fail(2, "train", f"{TINY}/{base}.yaml", *options, log=folder / "log")
        load = str(folder / stage)
    return folder


def options(folder: Path, common: list[str], layouts: bool = True) -> list[str]:
    own = [f"stages.{stage}.{layout}" for stage, (_, layout) in STAGES.items()]
    return [f"run.dir={folder}", *common, *(own if layouts else [])]


def check_equal(folder: Path, truth: Path, stages: list[str]) -> None:
    """Bit by bit: weights, optimizer, position in the data, counters, losses."""
    for stage in stages:
        last = f"checkpoints/step_{STEPS:08d}"
        found, expected = (checkpoint_tensors(each / stage / last) for each in (folder, truth))
        assert found.keys() == expected.keys()
        assert any(key.startswith("optimizer") for key in expected)
        assert not [key for key in expected if not torch.equal(found[key], expected[key])]
        progress = [
            json.loads((each / stage / last / "progress.json").read_text())
            for each in (folder, truth)
        ]
        for each in progress:
            del each["run"]
        assert progress[0] == progress[1]
        losses = [
            [(r["step"], r["loss"], r["grad_norm"], r["lr"]) for r in metrics(each / stage)]
            for each in (folder, truth)
        ]
        assert losses[0] == losses[1] and len(losses[0]) == STEPS


@pytest.fixture(scope="module")
def in_turn(file: Path, common: list[str], tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("in_turn")
    run_or_fail(2, "train", str(file), *options(folder, common), log=folder / "log")
    return folder


def test_stages_equal_runs_by_hand(in_turn: Path, by_hand: Path):
    check_equal(in_turn, by_hand, list(STAGES))
    log = (in_turn / "log").read_text()
    for layout in ("tensor 2 x pipeline 1 x data 1", "tensor 1 x pipeline 2 x data 1"):
        assert log.count(layout) == 1
    assert log.count("tensor 1 x pipeline 1 x data 2") == 1
    assert log.index("stage pretrain, 1 of 3") < log.index("stage sft, 2 of 3")
    assert f"starting from the weights of {in_turn}/pretrain/checkpoints/step_00000003" in log
    # All that tells that someone trains there is gone again.
    assert not list(in_turn.rglob(".owners"))


def test_a_resumed_file_finds_its_stage_at_another_number_of_processes(
    in_turn: Path, file: Path, common: list[str], tmp_path: Path, measure
):
    """Here in the middle of the second; the third, which had not begun, starts from it."""
    folder = tmp_path / "run"
    shutil.copytree(in_turn, folder, symlinks=True)
    shutil.rmtree(folder / "more")
    shutil.rmtree(folder / "sft/checkpoints/step_00000003")
    before = {path: path.stat().st_mtime_ns for path in (folder / "pretrain").rglob("*")}
    log = tmp_path / "log"
    run_or_fail(1, "train", str(file), *options(folder, common, layouts=False), log=log)
    said = log.read_text()
    assert f"stage pretrain is finished: {folder}/pretrain" in said
    assert "stage pretrain, 1 of 3" not in said
    assert f"resuming {folder}/sft/checkpoints/step_00000002 at step 2; 1 process" in said
    assert f"starting from the weights of {folder}/sft/checkpoints/step_00000003" in said
    after = {path: path.stat().st_mtime_ns for path in (folder / "pretrain").rglob("*")}
    assert after == before
    error = 0.0
    for stage in ("sft", "more"):
        for ours, truth in zip(metrics(folder / stage), metrics(in_turn / stage), strict=True):
            assert (ours["step"], ours["tokens"]) == (truth["step"], truth["tokens"])
            error = max(error, abs(ours["loss"] - truth["loss"]) / truth["loss"])
    what = "loss of a step, stages resumed on one process"
    measure(what, "the same stages on two, uninterrupted", error, 1e-5)


@pytest.mark.slow
def test_a_stage_that_does_not_fit_is_refused_before_the_first_step(
    file: Path, common: list[str], tmp_path: Path
):
    """With the stage's name; nothing is left of the attempt."""
    log = tmp_path / "log"
    wide = [*options(tmp_path / "run", common, layouts=False), "stages.sft.parallel.tensor=4"]
    assert run(2, "train", str(file), *wide, log=log) != 0
    assert "error: stage sft: 2 processes do not fit parallel.tensor 4 x parallel.pip" in (
        log.read_text()
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_in_each_stage_and_between_ends_bit_equal(
    file: Path, common: list[str], by_hand: Path, tmp_path: Path
):
    folder, log = tmp_path / "run", tmp_path / "log"
    ends = [
        "step 3/3",  # of the first stage, whose last save this interrupts or comes before
        "stage sft, 2 of 3",
        f"saved {folder}/sft/checkpoints/step_00000002",
        "stage more, 3 of 3",
        f"saved {folder}/more/checkpoints/step_00000002",
    ]
    for number, line in enumerate(ends):
        job = start_warm(2, "-m", "nvlm", "train", str(file), *options(folder, common), log=log)
        try:
            deadline = time.monotonic() + 120
            while line not in (log.read_text() if log.exists() else ""):
                assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.002)
            ranks = sorted(child.pid for child in psutil.Process(job.pid).children())
            os.kill(ranks[number % 2], signal.SIGKILL)
            assert job.wait(60) != 0
        finally:
            kill(job)
    run_or_fail(2, "train", str(file), *options(folder, common), log=log)
    assert log.read_text().count("stage pretrain is finished") >= 4
    check_equal(folder, by_hand, list(STAGES))
