"""A run keeps the checkpoint with the best validation, and finds it again when it resumes."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.small_runs import stage_config

WANTED = [
    "train.schedule.decay_steps=99",
    "train.optimizer.lr=1e-2",
    "validation.every=1",
    "validation.samples=2",
    "checkpoint.every=100",
    "checkpoint.keep=1",
    "checkpoint.best=validation/loss",
    "checkpoint.best_is=higher",
]


def measured(run: Path) -> dict[int, float]:
    lines = (run / "between_steps.jsonl").read_text().splitlines()
    return {line["step"]: line["validation/loss"] for line in map(json.loads, lines)}


def test_the_best_checkpoint_of_a_run_is_kept(demo_data: Path, tmp_path: Path):
    """The loss falls, so that the highest one is the first."""
    from nvlm.train.fit import train

    for steps in (2, 4):
        config = stage_config("sft", demo_data, tmp_path, "random", *WANTED, f"train.steps={steps}")
        train(config)
        run = Path(config.run.dir)
        losses = measured(run)
        assert list(losses) == list(range(1, steps + 1))
        best = max(losses, key=lambda step: losses[step])
        assert best == 1
        assert (run / "checkpoints" / "best").resolve().name == f"step_{best:08d}"
        kept = {path.name for path in (run / "checkpoints").glob("step_*")}
        # The ends of both runs stay for good.
        assert kept == {f"step_{step:08d}" for step in {1, 2, steps}}
