"""A step whose numbers were not finite is taken again from its file, on one process."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import small_model
from rich.console import Console

from nvlm.batch import StepBatch
from nvlm.errors import TrainingError
from nvlm.train.replay import _take, replay
from nvlm.train.replay_file import read_failed
from nvlm.train.training import Training


def fail(parallel, folder: Path, spoil) -> tuple[Training, StepBatch, str]:
    """A training whose step 3 fails; `spoil` changes the projection."""
    config = small_model.small_config("stage.freeze=[]", f"run.dir={folder}")
    model = small_model.build(config, parallel)
    training = Training(config, parallel, [model])
    batches = [
        replace(small_model.batch(config, seed, [60, 20], tiles), sample_keys=[f"sample-{seed}"])
        for seed, tiles in ((1, 0), (2, 3))
    ]
    batch = StepBatch(batches, [], {"position": 8})
    training.step, training.data_state = 2, {"position": 4}
    with torch.no_grad():
        spoil(model.vision_projection)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with pytest.raises(TrainingError) as caught:
        training.take_step(batch)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name
    (note,) = caught.value.__notes__
    assert note.endswith(f"nvlm train --replay {folder}/replay/step_00000003.json")
    return training, batch, str(caught.value)


def too_steep(projection) -> None:
    projection.norm.weight.mul_(1e6)
    projection.mlp.linear_fc1.weight.mul_(1e-41)
    projection.mlp.linear_fc2.weight.sign_().mul_(1e35)


def too_large(projection) -> None:
    for weight in projection.mlp.parameters():
        weight.mul_(1e21)


def one_infinite(projection) -> None:
    projection.mlp.linear_fc2.weight[3, 5] = torch.inf


def only_the_norm(projection) -> None:
    projection.mlp.linear_fc1.weight.mul_(1e-37)
    projection.mlp.linear_fc2.weight.sign_().mul_(1e38)


CASES = {
    too_large: ("the loss of micro-batch 1 of the step is ", "linear_fc2", "vision_projection.mlp"),
    one_infinite: ("the loss of micro-batch 1", "linear_fc2", "linear_fc2.weight"),
    too_steep: ("losses are finite, and gradients are not: vision_proj", "every output's gra", ""),
    only_the_norm: ("gradients are finite, and their norm overflows", "", ""),
}


@pytest.mark.parametrize("spoil", CASES, ids=lambda spoil: spoil.__name__)
def test_the_weights_of_that_moment_reproduce_it(spoil, parallel, tmp_path):
    training, batch, message = fail(parallel, tmp_path / "run", spoil)
    path = tmp_path / "run" / "replay" / "step_00000003.json"
    failed = read_failed(path)
    assert failed.message == message
    assert (failed.step, failed.data_state, failed.weights) == (3, {"position": 4}, path.stem)
    assert failed.samples == [["sample-1"], ["sample-2"]]
    assert (failed.checkpoint, failed.checkpoint_step) == (None, 0)
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    weights = path.parent / path.stem
    found = _take(training.config, batch, weights, parallel, failed.step, console)
    begins, *shown = CASES[spoil]
    assert found.startswith(begins)
    for words in shown:
        assert words in printed.getvalue()
    if spoil is one_infinite:
        assert "parameters that are not finite: vision_projection.mlp" in printed.getvalue()


def test_a_file_that_is_none_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "step.json"
    with pytest.raises(TrainingError, match=r"step\.json: cannot be read: No such file"):
        replay(path)
    for text in ("", "[]", '{"step": 3}', "{" * 5000):
        path.write_text(text)
        with pytest.raises(TrainingError, match=r"step\.json: not the file of a failed step"):
            replay(path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(TrainingError, match="takes one process"):
        replay(path)


def test_weights_that_are_gone_are_named(parallel, tmp_path):
    fail(parallel, tmp_path / "run", too_large)
    path = tmp_path / "run" / "replay" / "step_00000003.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "weights": None}))
    with pytest.raises(TrainingError, match="its weights are gone"):
        replay(path)
