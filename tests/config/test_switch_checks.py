"""What the decoder's switches do not go with is said before any process starts."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import changed, load_config
from nvlm.errors import ConfigError

RUN = REPOSITORY / "configs/run/tiny/sft.yaml"
X = [
    "model.fusion=cross_attention",
    "model.cross_attention.layer_interval=2",
    "stage.max_tiles_per_sequence=24",
]
BOTH_WAYS = "model.visual_attention=bidirectional"
LEVELS = "model.vision.feature_layers=[-3, -2, -1]"
DEEP = ["model.deepstack=levels", LEVELS]
TILES = ["model.deepstack=tiles", "stage.max_num_tiles=4"]
OWN = "model.language.visual_weights=norms_keys_values"
SOFT = "stage.tile_tags=soft"
GATE = "stage.alignment={levels_from: gate}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*X, BOTH_WAYS], "bidirectional does not go with model.fusion cross_attention"),
        ([BOTH_WAYS, "parallel.context=2"], "parallel.context 2 does not go with model.visual_att"),
        ([*X, OWN], "norms_keys_values does not go with model.fusion cross_attention"),
        (
            [OWN, "model.language.moe={num_experts: 4}"],
            "norms_keys_values does not go with model.language.moe",
        ),
        ([OWN, "parallel.context=2"], "parallel.context 2 does not go with model.language.visual"),
        ([OWN, "train.fp8.recipe=delayed"], "delayed does not go with model.language.visual"),
        (
            [OWN, "train.recompute.language.granularity=selective"],
            "granularity selective does not go with model.language.visual_weights",
        ),
        (
            [OWN, "stage.adapters={'*.linear_qkv.weight': {rank: 4}}"],
            "stage.adapters does not go with model.language.visual_weights",
        ),
        ([*X, SOFT], "tile_tags soft does not go with model.fusion cross_attention"),
        (
            [SOFT, "train.distill={teacher: runs/x, weight: 1}"],
            "train.distill does not go with stage.tile_tags soft",
        ),
        (["stage.num_soft_tag_tokens=2"], "num_soft_tag_tokens 2 is of stage.tile_tags soft"),
        ([*X, GATE], "stage.alignment does not go with model.fusion cross_attention"),
        ([SOFT, GATE], "stage.alignment does not go with stage.tile_tags soft"),
        ([GATE, "parallel.context=2"], "parallel.context 2 does not go with stage.alignment"),
        (
            [GATE, "train.distill={teacher: runs/x, weight: 1}"],
            "train.distill does not go with stage.alignment",
        ),
        ([GATE, "stage.use_thumbnail=false"], "stage.use_thumbnail is false with stage.max_num_t"),
        (
            ["stage.alignment={levels_from: samples, num_levels: 1}"],
            "stage.alignment.num_levels 1: one level tells",
        ),
        (
            ["model.deepstack=levels"],
            "deepstack levels needs one encoder with model.vision.feat",
        ),
        ([*DEEP, *X], "deepstack levels does not go with model.fusion cross_attention"),
        ([*DEEP, OWN], "deepstack levels does not go with model.language.visual_weights"),
        ([*DEEP, "parallel.context=2"], "parallel.context 2 does not go with model.deepstack"),
        ([*DEEP, "parallel.layout=auto"], "parallel.layout auto does not go with model.deepstack"),
        ([*TILES, *X], "deepstack tiles does not go with model.fusion cross_attention"),
        ([*TILES, OWN], "deepstack tiles does not go with model.language.visual_weights"),
        ([*TILES, "parallel.context=2"], "parallel.context 2 does not go with model.deepstack ti"),
        ([*TILES, "stage.use_thumbnail=false"], "deepstack tiles needs stage.use_thumbnail"),
        ([*TILES, "stage.tiling=pad_skip"], "tiling pad_skip does not go with model.deepstack ti"),
        ([*TILES, SOFT], "stage.tile_tags soft does not go with model.deepstack tiles"),
        ([*TILES, "stage.max_tiles_per_sequence=null"], "tiles needs stage.max_tiles_per_sequence"),
        (
            [*TILES, "model.connector={kind: attention_pooling, num_queries: 16}"],
            "deepstack tiles does not go with model.connector of kind attention_pooling with 16",
        ),
        (
            [*TILES, "stage.max_num_tiles=6"],
            r"behind the first 6 decoder layers \(stage.max_num_tiles 6\), and the first pipeline "
            "stage's first chunk has 4",
        ),
        ([*TILES, "parallel.pipeline=2"], "the first pipeline stage's first chunk has 2"),
        (["model.deepstack=rows"], "must be none, levels or tiles"),
        (
            [*DEEP, "parallel.pipeline=4"],
            "behind the first 2 decoder layers, and the first pipeline stage's first chunk has 1",
        ),
        (
            [*DEEP, "parallel.pipeline=2", "parallel.layout=[1,3]"],
            "behind the first 2 decoder layers, and the first pipeline stage's first chunk has 1",
        ),
    ],
)
def test_refused_with_the_reason(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(RUN, overrides)


@pytest.mark.parametrize(
    ("written", "meant"), [("true", "levels"), ("off", "none"), (True, "levels"), (False, "none")]
)
def test_the_switch_that_deepstack_was_is_still_read(written, meant):
    """As text, of a file, and as saved configurations have it."""
    config = load_config(RUN, [LEVELS])
    assert changed(config, {"model.deepstack": written}).model.deepstack == meant
