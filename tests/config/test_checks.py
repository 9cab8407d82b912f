"""Rules between keys that ask for more than a word: 8-bit products."""

from __future__ import annotations

import pytest

from nvlm.config import load_config
from nvlm.errors import ConfigError


def problems(name: str, recipe: str, *overrides: str) -> list[str]:
    """What is wrong with a shipped run in 8 bits."""
    try:
        load_config(name, [f"train.fp8.recipe={recipe}", *overrides])
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise"])
def test_the_large_models_may_train_in_8_bits(recipe):
    for name in ("nvlm_d_72b/sft", "nvlm_d_34b/sft", "internvit_6b_qwen2_7b/sft"):
        assert not problems(name, recipe)


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        ("tensorwise", ["train.precision=fp32"], "needs train.precision bf16, which is fp32"),
        ("tensorwise", ["model.layer_implementation=local"], "model.layer_implementation is local"),
        (
            "delayed",
            ["train.recompute.language.granularity=selective"],
            "does not go with train.recompute.language.granularity selective",
        ),
        (
            "delayed",
            ["stage.sequence_length=3208", "parallel.sequence=false"],
            "needs sizes that 16 divides: tokens of a micro-batch on a process 3208",
        ),
        # With sequence parallelism a rank has an eighth of them, 400, and gathers them in blocks.
        ("blockwise", [], "needs sizes that 128 divides: tokens of a micro-batch on a process 400"),
        (
            "tensorwise",
            ["model.language.ffn_hidden_size=29576"],
            "needs sizes that 16 divides: feed-forward channels of a process 3697",
        ),
    ],
)
def test_what_8_bits_do_not_go_with(recipe, overrides, said):
    (found,) = [line for line in problems("nvlm_d_72b/sft", recipe, *overrides) if "fp8" in line]
    assert f"train.fp8.recipe {recipe} {said}" in found or said in found


def test_selective_recomputation_goes_with_factors_of_a_tensors_own():
    selective = "train.recompute.language.granularity=selective"
    assert not problems("nvlm_d_72b/sft", "tensorwise", selective)
