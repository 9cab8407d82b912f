"""A loss, gradient or parameter that is not finite stops the run and is traced to its origin."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import small_model
from helpers.parts_of_steps import part_of

from nvlm.batch import StepBatch
from nvlm.errors import TrainingError
from nvlm.parallel.broadcast import next_step_batch
from nvlm.train.diagnose import check_parameters
from nvlm.train.training import Training

CONFIG = small_model.small_config("stage.freeze=[]")


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    """What a failed step leaves behind goes below `run.dir`, which is relative."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(parallel):
    """A bare model and a function that does one real training step on three micro-batches."""
    model = small_model.build(CONFIG, parallel)
    training = Training(CONFIG, parallel, [model])
    micro_batches = [
        replace(small_model.batch(CONFIG, seed, documents, num_tiles), sample_keys=keys)
        for seed, documents, num_tiles, keys in (
            (1, [60, 20], 2, ["images-1", "images-2"]),
            (2, [30, 50], 0, ["text-1", "text-2"]),
            (3, [56, 8, 16], 3, ["more-images-1", "more-images-2"]),
        )
    ]

    def step(number: int = 7):
        training.step = number - 1
        return training.take_step(StepBatch(micro_batches, [], {})).result

    return model, step


def test_a_normal_step_is_finite_and_leaves_no_hooks(trained):
    model, step = trained
    assert math.isfinite(step().loss)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_poisoned_weight_is_named_with_its_module(trained):
    model, step = trained
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model.language_model.decoder.layers[1].mlp.linear_fc2.weight[3, 5] = torch.inf
    before["language_model.decoder.layers.1.mlp.linear_fc2.weight"][3, 5] = torch.inf
    with pytest.raises(TrainingError) as caught:
        step(12)
    lines = str(caught.value).splitlines()
    assert lines[0] in ("step 12: the loss is nan", "step 12: the loss is inf")
    size = before["language_model.decoder.layers.1.mlp.linear_fc2.weight"].numel()
    assert lines[1].strip() == (
        "parameters that are not finite: language_model.decoder.layers.1.mlp.linear_fc2.weight "
        f"on rank 0 (pipeline stage 0): 1 of {size} values"
    )
    for number, name in enumerate(("images", "text", "more-images")):
        assert lines[2 + number].strip() == (
            f"micro-batch {number} of data rank 0: first in the output of "
            "language_model.decoder.layers.1.mlp.linear_fc2 on rank 0 (pipeline stage 0); "
            f"samples {name}-1, {name}-2"
        )
    # Nothing was updated.
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert not any(module._forward_hooks for module in model.modules())


def test_features_that_were_encoded_before_the_step_are_looked_at(parallel):
    config = small_model.small_config("parallel.vision=tile_parallel")
    model = small_model.build(config, parallel)
    with torch.no_grad():
        model.vision_model.decoder.layers[1].mlp.linear_fc2.bias[3] = torch.inf
    micro_batches = [small_model.batch(config, n, [80], num_tiles=n) for n in (0, 2)]
    part = part_of(StepBatch(micro_batches, [], {}), parallel)
    step = next_step_batch(iter([part]), parallel, shares_tiles=True)
    assert step is not None
    with pytest.raises(TrainingError) as caught:
        Training(config, parallel, [model]).take_step(step)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[1].startswith(
        "parameters that are not finite: vision_model.decoder.layers.1.mlp.linear_fc2.bias on rank"
    )
    assert lines[2].startswith(
        "micro-batch 1 of data rank 0: first in the output of vision_model on rank 0"
    )
    assert not lines[3].startswith("micro-batch")


def test_an_overflow_names_only_the_guilty_micro_batches(trained):
    model, step = trained
    with torch.no_grad():
        for weight in model.vision_projection.mlp.parameters():
            weight.mul_(1e21)
    with pytest.raises(TrainingError) as caught:
        step()
    message = str(caught.value)
    assert "parameters that are not finite" not in message
    assert message.count("first in the output of vision_projection.mlp.linear_fc2 on rank 0") == 2
    assert "; samples images-1, images-2\n" in message
    assert "; samples more-images-1, more-images-2\n" in message
    assert "micro-batch 1" not in message
    assert "text-1" not in message


def test_gradients_that_overflow_are_named_from_the_loss_backwards(trained):
    model, step = trained
    projection = model.vision_projection
    with torch.no_grad():
        # Their product is moderate; the gradient of the second is as large as the others' product.
        projection.norm.weight.mul_(1e6)
        projection.mlp.linear_fc1.weight.mul_(1e-41)
        projection.mlp.linear_fc2.weight.sign_().mul_(1e35)
    with pytest.raises(TrainingError) as caught:
        step(3)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0].startswith("step 3: the gradient norm is ")
    assert lines[0].endswith(" and the loss is finite")
    assert lines[1].startswith(
        "gradients that are not finite, from the loss backwards: "
        "vision_projection.mlp.linear_fc1.weight on rank 0 (pipeline stage 0): "
    )
    assert lines[2] == (
        "samples of the step: images-1, images-2, text-1, text-2, more-images-1, more-images-2"
    )


def test_a_norm_that_overflows_with_finite_gradients_says_so(trained):
    model, step = trained
    with torch.no_grad():
        model.vision_projection.mlp.linear_fc1.weight.mul_(1e-37)
        model.vision_projection.mlp.linear_fc2.weight.sign_().mul_(1e38)
    with pytest.raises(TrainingError, match="backwards: none; only their norm overflows"):
        step()


def test_parameters_are_checked_before_they_are_saved(trained, parallel):
    model, _ = trained
    check_parameters([model], 4, parallel)
    with torch.no_grad():
        model.vision_model.embeddings.class_embedding[0, 0, 2] = torch.nan
    with pytest.raises(TrainingError, match=r"step 4: .* vision_model\.embeddings\.class_emb"):
        check_parameters([model], 4, parallel)
