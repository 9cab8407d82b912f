"""What cross-attention needs, and what it does not go with, is said before any process starts."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.errors import ConfigError

RUN = REPOSITORY / "configs/run/tiny/sft.yaml"
X = ["model.fusion=cross_attention", "model.cross_attention.layer_interval=2"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.fusion=hybrid"], "model.fusion hybrid and model.cross_attention null"),
        (X[1:], "model.fusion decoder_only and model.cross_attention given"),
        (
            [*X, "model.cross_attention.layer_interval=5"],
            "layer_interval 5 is more than the 4 layers of model.language",
        ),
        (
            [*X, "model.cross_attention.num_query_groups=3"],
            "num_attention_heads 8 is not a multiple of model.cross_attention.num_query_groups 3",
        ),
        (
            [*X, "model.cross_attention.num_query_groups=2", "parallel.tensor=4"],
            "parallel.tensor 4 does not divide model.cross_attention.num_query_groups 2",
        ),
        (
            [*X, "parallel.context=2"],
            "parallel.context 2 does not go with model.fusion cross_attention",
        ),
        (
            [*X, "train.fp8.recipe=delayed"],
            "train.fp8.recipe delayed does not go with model.fusion cross_attention",
        ),
        (
            [*X, "stage.max_tiles_per_sequence=24", "stage.tiling=pad_skip"],
            "stage.tiling pad_skip does not go with model.fusion cross_attention",
        ),
    ],
)
def test_refused_with_the_reason(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(RUN, overrides)


def test_layers_with_cross_attention_are_the_last_of_each_group():
    config = load_config(RUN, [*X, "stage.max_tiles_per_sequence=24"])
    assert config.model.cross_attention_layers == (1, 3)
    assert load_config(RUN).model.cross_attention_layers == ()
