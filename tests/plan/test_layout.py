"""The cut by time, against every possible cut of small models, and its times against the plan's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.estimate import make_plan
from nvlm.plan.hardware import CARDS, DEFAULT_CARD
from nvlm.plan.layout import balanced_layers, stage_seconds, with_stage_layers
from nvlm.plan.work import largest_work
from nvlm.sizes.layout import stage_layers

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
        ("nvlm_d_72b/pretrain", 24, 3, ["parallel.tensor=1", "parallel.sequence=no"]),
        ("tiny/sft", 12, 4, ["stage.max_tiles_per_sequence=7"]),
    ],
)
def test_the_slowest_stage_is_as_fast_as_can_be(name, num_layers, pipeline, overrides):
    sizes = [f"model.language.num_layers={num_layers}", f"parallel.pipeline={pipeline}"]
    config = load(name, *sizes, *overrides, "parallel.layout=auto")
    cut = balanced_layers(config)
    assert sum(map(sum, cut)) == num_layers
    best = min(
        max(stage_seconds(config, [[n] for n in layers]))
        for layers in all_cuts(num_layers, pipeline)
    )
    assert max(stage_seconds(config, cut)) == pytest.approx(best, rel=1e-12)


def test_chunks_of_a_stage_are_about_even():
    """As many layers on each stage as without virtual stages, one more or less in each chunk."""
    tiles = "stage.max_num_tiles=1"
    whole = balanced_layers(load("nvlm_d_72b/sft", tiles))
    chunks = balanced_layers(load("nvlm_d_72b/sft", tiles, "parallel.virtual_pipeline=5"))

    assert [[sum(row)] for row in chunks] == whole
    for row in chunks[1:-1]:
        assert max(row) - min(row) <= 1
    # The encoder takes as long as some layers, so the first chunk has fewer of them.
    assert chunks[0][0] < min(chunks[0][1:])


def test_the_72b_has_fewer_layers_beside_its_encoder():
    config = load("nvlm_d_72b/sft")
    even = stage_seconds(config, [[20]] * 4)
    cut = balanced_layers(config)
    assert cut[0][0] < 20 < cut[1][0]
    assert max(stage_seconds(config, cut)) < 0.8 * max(even)
    # The more images, the fewer layers.
    one_tile = balanced_layers(load("nvlm_d_72b/sft", "stage.max_num_tiles=1"))
    assert cut[0][0] < one_tile[0][0] <= 20


def test_an_encoder_on_every_process_leaves_the_first_stage_its_layers():
    shared = load("nvlm_d_72b/sft", "parallel.layout=auto", "parallel.vision=tile_parallel")
    # The output layer costs about as much as a layer of the decoder.
    layers = balanced_layers(shared)
    assert layers == [[20], [20], [21], [19]]
    alone = load("nvlm_d_72b/sft", "parallel.layout=auto")
    assert stage_seconds(shared, layers)[1:] == stage_seconds(alone, layers)[1:]
    assert stage_seconds(shared, layers)[0] < 0.7 * stage_seconds(alone, layers)[0]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["parallel.virtual_pipeline=4"],
        [RECOMPUTED, "train.recompute.language.num_layers=8", "parallel.virtual_pipeline=4"],
    ],
)
def test_times_are_those_of_the_plan(overrides: list[str]):
    config = load("nvlm_d_72b/sft", *overrides)
    plan = make_plan(config, 32, assumptions_for(CARDS[DEFAULT_CARD]), largest_work(config))
    layers = [[len(chunk) for chunk in stage.layers] for stage in plan.stages]
    assert layers == stage_layers(with_stage_layers(config)) == balanced_layers(config)
    planned = [stage.forward.total + stage.backward.total for stage in plan.stages]
    assert stage_seconds(config, layers) == pytest.approx(planned)


def test_what_is_written_stays():
    for layout in ("even", [1, 79, 0, 0]):
        config = load("nvlm_d_72b/sft", f"parallel.layout={layout}")
        assert with_stage_layers(config) is config
    config = load("nvlm_d_72b/sft", "parallel.layout=auto")
    with pytest.raises(AssertionError, match="with_stage_layers was not called"):
        stage_layers(config)
    cut = with_stage_layers(config)
    assert isinstance(cut.parallel.layout, list)
    assert cut == load("nvlm_d_72b/sft", f"parallel.layout={cut.parallel.layout}")
