"""Each rule of experts and expert parallelism, broken."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.config.checks import check_world_size, model_differences, world_size_problems
from nvlm.errors import ConfigError

EXPERTS = "model.language.moe={num_experts: 4}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallel.expert=2"], "parallel.expert 2 needs experts"),
        (["model.language.moe={num_experts: 4, top_k: 1}"], "top_k 1 must be from 2 to"),
        (["model.language.moe={num_experts: 4, top_k: 5}"], "num_experts 4"),
        (["model.language.moe={num_experts: 4, every_nth_layer: 99}"], "no layer has experts"),
        ([EXPERTS, "parallel.expert=3"], "parallel.expert 3 does not divide"),
        (
            [EXPERTS, "train.fp8.recipe=delayed", "train.precision=bf16"],
            "does not go with model.language.moe",
        ),
        (
            [EXPERTS, "parallel.expert=2", "validation.every=1", "validation.questions=3"],
            "validation.questions needs experts that no two",
        ),
    ],
)
def test_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(REPOSITORY / "configs/run/tiny/sft.yaml", overrides)


def test_processes_that_cannot_share_experts_are_refused():
    config = load_config(REPOSITORY / "configs/run/tiny/sft.yaml", [EXPERTS, "parallel.expert=4"])
    with pytest.raises(ConfigError, match=r"parallel\.expert 4 does not divide the 2 processes"):
        check_world_size(config, 2)
    assert check_world_size(config, 4) == 4


def test_training_over_tensor_ranks_needs_sequence_parallelism():
    """Answering does not: its layout is no training's."""
    path, tensor = REPOSITORY / "configs/run/tiny/sft.yaml", "parallel.tensor=2"
    (problem,) = world_size_problems(load_config(path, [EXPERTS, tensor]), 2)
    assert "needs parallel.sequence true" in problem
    with_sequence = load_config(path, [EXPERTS, tensor, "parallel.sequence=true"])
    assert not world_size_problems(with_sequence, 2)


def test_weights_of_losses_are_no_difference_between_models():
    def model(experts: str):
        path = REPOSITORY / "configs/run/tiny/sft.yaml"
        return load_config(path, [f"model.language.moe={{{experts}}}"]).model

    ours = model("num_experts: 4")
    assert not [*model_differences(ours, model("num_experts: 4, z_loss: 0.5"))]
    differences = [*model_differences(ours, model("num_experts: 8, z_loss: 0.5"))]
    assert differences == [("model.language.moe.num_experts", 4, 8)]
