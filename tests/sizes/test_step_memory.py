"""Micro-batches under way as Megatron-core's schedules have them, and what that makes of bytes.

The memory that the shipped files say they take is what is reckoned, and fits their GPUs.
"""

from __future__ import annotations

import re

import pytest
from helpers import small_model
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.config.checks import check_world_size
from nvlm.parallel.stand_in import stand_in
from nvlm.plan.layout import with_stage_layers
from nvlm.plan.work import most_tiles
from nvlm.sizes.activations import stage_activations
from nvlm.sizes.memory import stage_memory
from nvlm.sizes.step_memory import step_memory

LAYERS = ["model.language.num_layers=8", "stage.freeze=['vision_model.*']"]


@pytest.mark.parametrize("num_micro_batches", [4, 8, 32])
@pytest.mark.parametrize(
    "layout",
    [
        ["parallel.pipeline=1"],
        ["parallel.pipeline=4"],
        ["parallel.pipeline=4", "parallel.layout=[1, 3, 0, 4]"],
        ["parallel.pipeline=4", "parallel.virtual_pipeline=2"],
        ["parallel.pipeline=2", "parallel.virtual_pipeline=4"],
    ],
)
def test_chunks_under_way_are_those_of_the_schedule(layout: list[str], num_micro_batches: int):
    config = small_model.small_config(
        *LAYERS, *layout, f"train.global_batch_size={num_micro_batches}"
    )
    num_chunks = config.parallel.virtual_pipeline
    for stage in range(config.parallel.pipeline):
        with stand_in(config, stage):
            from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches

            total, all_before, before, _ = get_pp_rank_microbatches(
                num_micro_batches, num_chunks, config.parallel.pipeline
            )
        one = stage_activations(config, stage, num_tiles=7)
        # The forward pass that follows those before the first backward pass is kept as well.
        held = before if all_before else before + 1
        found = step_memory(config, stage, data_parallel_size=1, num_tiles=7)
        assert held <= total
        assert found.kept == stage_memory(config, stage, 1)
        layers = (one.layers + one.projector) * held // num_chunks
        assert found.activations == layers + one.head


def test_features_wait_on_the_first_stage():
    layout = [*LAYERS, "parallel.pipeline=2", "train.global_batch_size=6"]
    alone = small_model.small_config(*layout)
    shared = small_model.small_config(*layout, "parallel.vision=tile_parallel")
    vision = alone.model.vision
    waiting = 6 * 7 * vision.num_tokens_per_tile * vision.token_size * 4
    for stage, expected in ((0, waiting), (1, 0)):
        added = step_memory(shared, stage, 1, 7).activations
        assert added - step_memory(alone, stage, 1, 7).activations == expected


RUNS = REPOSITORY / "configs" / "run"
FILES = sorted(path for path in RUNS.glob("*/*.yaml") if "by `nvlm.sizes`" in path.read_text())
# Of 85.5 that an H100 of 80 GB has: libraries, passing buffers, gaps.
MOST_GB = 70


def fullest(config: RunConfig, num_gpus: int) -> float:
    """GB on the fullest GPU."""
    config, data_size = with_stage_layers(config), check_world_size(config, num_gpus)
    return max(
        step_memory(config, stage, data_size, most_tiles(config), "transformer_engine").total / 1e9
        for stage in range(config.parallel.pipeline)
    )


def test_the_large_models_say_what_they_take():
    models = {path.parent.name for path in FILES}
    assert models == {"nvlm_d_72b", "nvlm_d_34b", "internvit_6b_qwen2_7b"}
    assert all(set(RUNS.glob(f"{model}/*.yaml")) <= set(FILES) for model in models)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_memory_is_as_the_file_says(path):
    comments = " ".join(line.strip("# ") for line in path.read_text().splitlines())
    said = re.findall(r"([\d.]+) GB on (\d+)", comments)
    assert said
    for gigabytes, num_gpus in said:
        found = fullest(load_config(path), int(num_gpus))
        assert found == pytest.approx(float(gigabytes), rel=0.06), num_gpus
        assert found < MOST_GB


def test_what_the_files_leave_out_would_not_fit():
    """The 34B's optimizer on 8 GPUs; 40 GB with the 7B's tensor parallelism as it is."""
    assert fullest(load_config("nvlm_d_34b/sft"), 8) > 80
    seven = load_config("internvit_6b_qwen2_7b/sft")
    wider = load_config("internvit_6b_qwen2_7b/sft", ["parallel.tensor=4"])
    assert fullest(seven, 8) > 40 > fullest(wider, 8)
