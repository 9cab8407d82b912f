"""Runs whose numbers blow up end with exit code 2, a message, and their last checkpoint intact."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from helpers import small_runs, spawn

from nvlm.train.events import read_events


def run_arguments(demo_data, folder, *overrides: str) -> list[str]:
    return [
        "train",
        "configs/run/tiny/sft.yaml",
        *small_runs.over(demo_data),
        f"run.dir={folder}",
        "train.global_batch_size=2",
        *small_runs.SHORT_ROWS,
        "train.schedule.warmup_steps=0",
        "data.num_workers=0",
        "log.tensorboard=false",
        *overrides,
    ]


@pytest.mark.parallel
def test_a_run_that_blows_up_keeps_its_last_checkpoint(demo_data, tmp_path, fault):
    folder = tmp_path / "run"
    sizes = ["model.vision.num_layers=1", "model.language.num_layers=2"]
    every_step = run_arguments(demo_data, folder, *sizes, "train.steps=1", "checkpoint.every=1")
    spawn.run_or_fail(1, *every_step, log=tmp_path / "log")
    latest = folder / "checkpoints" / "latest"
    written = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert latest.resolve().name == "step_00000001"

    # So large an update leaves finite parameters, and the next step's loss is not finite.
    options = ["train.steps=4", "train.optimizer.lr=1e30", "checkpoint.every=10"]
    blown_up = run_arguments(demo_data, folder, *sizes, *options)
    assert spawn.run(1, *blown_up, log=tmp_path / "blown up") == 2
    error = (tmp_path / "blown up").read_text()
    assert "error: step 3: the loss is nan" in error
    assert "micro-batch 0 of data rank 0: first in the output of " in error
    assert "; samples " in error
    file = folder / "replay" / "step_00000003.json"
    assert f"  take the step again on one process: nvlm train --replay {file}\n" in error
    log = tmp_path / "replayed"
    spawn.run_or_fail(1, "train", "--replay", str(file), log=log)
    assert f"weights of {file.with_suffix('')}: those of that step" in log.read_text()
    assert "reproduced: the loss of micro-batch 0 of the step is nan" in log.read_text()
    module = error.partition("first in the output of ")[2].partition(" on rank")[0]
    assert f"first in {module}\n" in log.read_text()
    # With weights of two steps before nothing is wrong, and that says so.
    shutil.rmtree(file.with_suffix(""))
    log = tmp_path / "older"
    assert spawn.run(1, "train", "--replay", str(file), log=log) == 2
    assert f"weights of {folder}/checkpoints/step_00000001: older: of step 1" in log.read_text()
    assert "not reproduced: loss and gradients of step 3 are finite" in log.read_text()
    *_, event, last = read_events(folder)
    assert (event.kind, event.step, event.text) == ("not_finite", 3, "step 3: the loss is nan")
    assert (last.kind, last.step) == ("failure", 3) and "the loss is nan" in last.text
    outcome = "the run ends, names module and samples, and a file from which one process repeats it"
    fault(what="the loss is not finite", layout="one process", outcome=outcome)

    # One larger still: the update itself overflows, and its checkpoint is not written.
    rates = [f"train.optimizer.{key}" for key in ("lr=3.4e38", "min_lr=3.4e38", "beta1=0")]
    options = ["train.steps=4", "checkpoint.every=1", "checkpoint.background=no", *rates]
    blown_up = run_arguments(demo_data, folder, *sizes, *options)
    assert spawn.run(1, *blown_up, log=tmp_path / "larger") == 2
    assert "step 2: after the optimizer's update, parameters" in (tmp_path / "larger").read_text()

    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == written
    assert latest.resolve().name == "step_00000001"
    assert all(math.isfinite(record["loss"]) for record in spawn.metrics(folder))


@pytest.mark.slow
@pytest.mark.parallel
def test_virtual_pipeline_names_the_layer_of_a_later_stage(demo_data, tmp_path):
    """Only layer 3 trains, at a rate that ruins it: the second chunk of the second stage."""
    others = [
        "vision_model",
        "vision_projection",
        "*embedding",
        "*output_layer",
        "*final_layernorm",
    ]
    frozen = [f"{name}.*" for name in [*others, *(f"*.layers.{layer}" for layer in range(3))]]
    options = run_arguments(
        demo_data,
        tmp_path / "run",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        f"stage.freeze={json.dumps(frozen)}",
        "train.optimizer.lr=1e30",
        "train.steps=3",
    )
    log = tmp_path / "log"
    assert spawn.run(2, *options, log=log) != 0
    text = log.read_text()
    assert "error: step 2: the loss is nan" in text
    # torchrun's summary says it again.
    (last,) = {
        line.strip() for line in text.splitlines() if "micro-batch 1 of data rank 0: " in line
    }
    assert "first in the output of language_model.decoder.layers.3." in last
    assert " on rank 1 (pipeline stage 1); samples " in last
    assert "exitcode  : 2" in text
    assert len(spawn.metrics(tmp_path / "run")) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
    # Both stages' weights and both data of the pipeline, on one process.
    file = tmp_path / "run" / "replay" / "step_00000002.json"
    log = tmp_path / "replayed"
    spawn.run_or_fail(1, "train", "--replay", str(file), log=log)
    assert "trained as tensor 1 x pipeline 2 x data 1" in log.read_text()
    assert "first in language_model.decoder.layers.3." in log.read_text()
