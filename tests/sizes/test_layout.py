"""The cut by cost, against every possible cut of small models, and its costs against the FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.sizes.flops import step_flops
from nvlm.sizes.layout import StageLayers, stage_layers, stage_seconds
from nvlm.sizes.stage_seconds import Rates, expected_tiles, part_seconds

RECOMPUTED = "train.recompute.language.granularity=full"


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(REPOSITORY / "configs" / "run" / f"{name}.yaml", overrides)


def all_cuts(num_layers: int, num_parts: int) -> Iterator[list[int]]:
    if num_parts == 1:
        yield [num_layers]
        return
    for first in range(num_layers + 1):
        for rest in all_cuts(num_layers - first, num_parts - 1):
            yield [first, *rest]


@pytest.mark.parametrize(
    "name, num_layers, pipeline, overrides",
    [
        ("nvlm_d_72b/sft", 14, 4, []),
        ("nvlm_d_72b/sft", 40, 3, ["stage.packing=true"]),
        ("nvlm_d_72b/sft", 60, 2, ["stage.freeze=[]"]),
        ("nvlm_d_72b/sft", 3, 4, [RECOMPUTED]),
        ("nvlm_d_34b/sft", 30, 3, [RECOMPUTED, "train.recompute.language.num_layers=4"]),
        ("nvlm_d_72b/pretrain", 24, 3, ["parallel.tensor=1"]),
        ("tiny/sft", 12, 4, ["stage.max_tiles_per_sequence=7"]),
    ],
)
def test_the_slowest_stage_is_as_fast_as_can_be(name, num_layers, pipeline, overrides):
    sizes = [f"model.language.num_layers={num_layers}", f"parallel.pipeline={pipeline}"]
    config = load(name, *sizes, *overrides, "parallel.layout=auto")
    cut = stage_layers(config)
    assert sum(map(sum, cut)) == num_layers
    best = min(
        max(stage_seconds(config, [[n] for n in layers]))
        for layers in all_cuts(num_layers, pipeline)
    )
    assert max(stage_seconds(config, cut)) == pytest.approx(best, rel=1e-12)


def test_chunks_of_a_stage_are_about_even():
    """As many layers on each stage as without virtual stages, one more or less in each chunk."""
    overrides = ["parallel.sequence=true", "parallel.pipeline=4", "parallel.layout=auto"]
    whole = stage_layers(load("nvlm_d_72b/sft", *overrides))
    chunks = stage_layers(load("nvlm_d_72b/sft", *overrides, "parallel.virtual_pipeline=5"))
    assert [[sum(row)] for row in chunks] == whole
    for row in chunks[1:-1]:
        assert max(row) - min(row) <= 1
    # The encoder takes as long as some layers, so the first chunk has fewer of them.
    assert chunks[0][0] < min(chunks[0][1:])


def test_the_72b_has_fewer_layers_beside_its_encoder():
    config = load("nvlm_d_72b/sft", "parallel.layout=auto")
    even = stage_seconds(config, [[20]] * 4)
    cut = stage_layers(config)
    assert cut[0][0] < 20 < cut[1][0]
    assert max(stage_seconds(config, cut)) < 0.8 * max(even)
    # The more images, the fewer layers.
    one_tile = stage_layers(load("nvlm_d_72b/sft", "parallel.layout=auto", "stage.max_num_tiles=1"))
    assert cut[0][0] < one_tile[0][0] <= 20


def test_an_encoder_on_every_process_leaves_the_first_stage_its_layers():
    shared = load("nvlm_d_72b/sft", "parallel.layout=auto", "parallel.vision=tile_parallel")
    # The output layer costs about as much as a layer of the decoder.
    assert stage_layers(shared) == [[20], [20], [21], [19]]
    alone = load("nvlm_d_72b/sft", "parallel.layout=auto")
    assert 0 < part_seconds(shared).encoder < part_seconds(alone).encoder / 20


@pytest.mark.parametrize(
    "name, overrides, tiles",
    [
        ("nvlm_d_72b/sft", [], 7),
        ("nvlm_d_72b/sft", ["train.micro_batch_size=2"], 14),
        ("nvlm_d_72b/sft", ["stage.packing=true"], 12),
        ("nvlm_d_72b/pretrain", [], 1),
        ("nvlm_d_34b/pretrain_mm1_mix", [], 16),
    ],
)
def test_tiles_that_are_expected(name: str, overrides: list[str], tiles: int):
    assert expected_tiles(load(name, *overrides)) == tiles


@pytest.mark.parametrize("freeze", [["vision_model.*"], [], ["vision_model.*", "language_model.*"]])
@pytest.mark.parametrize("name", ["nvlm_d_72b/sft", "internvit_300m_qwen2_0_5b/sft"])
def test_operations_are_those_of_a_step(name: str, freeze: list[str]):
    """With rates that leave nothing but operations, one of them a second."""
    config = load(name, f"stage.freeze={freeze}")
    parts = part_seconds(config, Rates(operations=1, memory_bytes=inf, message_bytes=inf))
    found = parts.encoder + parts.head + config.model.language.num_layers * parts.layer
    length = config.stage.sequence_length
    expected = step_flops(config).of_sequence([length], expected_tiles(config), length)
    assert config.parallel.tensor * found == pytest.approx(expected, rel=1e-9)


def test_what_is_recomputed_costs_a_forward_pass():
    plain, full, selective = (
        part_seconds(load("nvlm_d_72b/sft", f"train.recompute.language.granularity={granularity}"))
        for granularity in ("none", "full", "selective")
    )
    assert plain.recomputed == selective.recomputed == 0
    assert 0.25 * full.layer < full.recomputed < 0.5 * full.layer
    assert plain.layer == full.layer < selective.layer < plain.layer + full.recomputed
    some = load("nvlm_d_72b/sft", RECOMPUTED, "train.recompute.language.num_layers=5")
    layers: StageLayers = [[2], [18], [30], [30]]
    without = stage_seconds(load("nvlm_d_72b/sft"), layers)
    added = [ours - plain for ours, plain in zip(stage_seconds(some, layers), without, strict=True)]
    assert added == pytest.approx([n * full.recomputed for n in (2, 5, 5, 5)])


def test_sequence_parallelism_and_fewer_ranks():
    split, whole, alone = (
        part_seconds(load("nvlm_d_72b/sft", *overrides))
        for overrides in (["parallel.sequence=true"], [], ["parallel.tensor=1"])
    )
    assert split.layer < whole.layer < alone.layer < 8 * whole.layer
    assert split.encoder == whole.encoder < alone.encoder
