"""What cross-attention needs, and what it does not go with, is said before any process starts."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.errors import ConfigError

RUN = REPOSITORY / "configs/run/tiny/sft.yaml"
X = ["model.fusion=cross_attention", "model.cross_attention.layer_interval=2"]
IN_TURN = "model.cross_attention.levels=in_turn"
LEVELS = "model.vision.feature_layers=[-3, -2, -1]"
TWO_ENCODERS = (
    "model.vision={kind: side_by_side, encoders: ["
    "{kind: timm, name: vit_small_patch14_dinov2, image_size: 112, feature_layers: [-2, -1]}, "
    "{kind: timm, name: vit_small_patch14_dinov2, image_size: 112}]}"
)


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
            [*X, IN_TURN, LEVELS, "model.fusion=hybrid"],
            "levels in_turn does not go with model.fusion hybrid",
        ),
        ([*X, IN_TURN], "levels in_turn needs one encoder with model.vision.feature_layers"),
        (
            [*X, IN_TURN, TWO_ENCODERS],
            "levels in_turn needs one encoder with model.vision.feature_layers",
        ),
        (
            [*X, IN_TURN, LEVELS],
            r"gives the 2 layers with cross-attention \(layer_interval 2\) one level each, and "
            "model.vision.feature_layers names 3",
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


def test_levels_are_read_in_equal_shares():
    """Of seven layers as in internvit_300m_qwen2_5_7b_x, and of four."""
    run = REPOSITORY / "configs/run/internvit_300m_qwen2_5_7b_x/sft.yaml"
    wanted = {
        "[-21,-17,-13,-9,-5,-1]": [0, 0, 1, 2, 3, 4, 5],
        "[-17,-9,-1]": [0, 0, 0, 1, 1, 2, 2],
        "[-13,-1]": [0, 0, 0, 0, 1, 1, 1],
    }
    for layers, expected in wanted.items():
        model = load_config(run, [IN_TURN, f"model.vision.feature_layers={layers}"]).model
        settings, number = model.cross_attention, model.num_levels_beside
        assert settings is not None
        found = [settings.level(layer, 28, number) for layer in model.cross_attention_layers]
        assert found == expected
        assert model.connector_sizes.channels == model.vision.hidden_size
    assert load_config(run).model.num_levels_beside == 1
