"""Ranks leave out the same steps where a loss jumps, and a resumed run the same ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import spawn

from nvlm.train.events import read_events

pytestmark = [pytest.mark.parallel, pytest.mark.slow]


def arguments(folder: Path, demo_data: Path, *more: str) -> list[str]:
    return [
        "train",
        "configs/run/tiny/sft.yaml",
        f"data.root={demo_data}",
        f"data.index_dir={folder.parent / 'index'}",
        f"run.dir={folder}",
        "data.num_workers=0",
        "checkpoint.load=random",
        "train.global_batch_size=4",
        "train.schedule.warmup_steps=0",
        "train.on_spike=skip",
        "train.spike.window=8",
        "train.spike.deviations=3",
        "log.tensorboard=false",
        "model.vision.num_layers=1",
        "model.language.num_layers=2",
        *more,
    ]


@pytest.mark.parametrize("layout", ["parallel.tensor=2", "parallel.tensor=1"])
def test_ranks_and_a_resumed_run_skip_alike(layout, demo_data: Path, tmp_path: Path, fault):
    """A rate that suddenly is a thousand times as high makes the loss jump in the step after."""
    folder = tmp_path / "run"
    quiet = arguments(folder, demo_data, layout, "train.steps=9", "checkpoint.every=3")
    spawn.run_or_fail(2, *quiet, log=tmp_path / "log")
    rates = ["train.optimizer.lr=1.0", "train.optimizer.min_lr=1.0", "train.steps=14"]
    jumping = arguments(folder, demo_data, layout, *rates, "checkpoint.every=11")
    spawn.run_or_fail(2, *jumping, log=tmp_path / "log")
    skipped = [event.step for event in read_events(folder) if event.kind == "skip"]
    assert skipped and min(skipped) > 10
    truth = spawn.metrics(folder)
    # From the step that is saved in the middle of it, the same again.
    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed, symlinks=True)
    shutil.rmtree(resumed / "checkpoints" / "step_00000014")
    (resumed / "events.jsonl").unlink()
    again = arguments(resumed, demo_data, layout, *rates, "checkpoint.every=11")
    spawn.run_or_fail(2, *again, log=tmp_path / "log of resumed")
    assert [e.step for e in read_events(resumed) if e.kind == "skip"] == [
        step for step in skipped if step > 11
    ]
    losses = [(record["step"], record["loss"]) for record in spawn.metrics(resumed)]
    assert losses == [(record["step"], record["loss"]) for record in truth]
    fault(
        what="the loss jumps, train.on_spike: skip",
        layout="TP2" if layout.endswith("2") else "DP2",
        outcome="all ranks leave out the same updates, also a resumed run, bit-equal",
    )
