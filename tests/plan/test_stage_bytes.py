"""Memory of a rank: parts that are counted elsewhere are those, and the rest follows its rules.

That parameters, gradients and optimizer state are what Megatron-core allocates is in tests/sizes.
The memory that the shipped files say they take is what a plan says, and fits their GPUs.
"""

from __future__ import annotations

import re

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.config.checks import check_world_size
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.hardware import CARDS
from nvlm.plan.layout import with_stage_layers
from nvlm.plan.stage_bytes import StageBytes, checkpoint_bytes, stage_bytes
from nvlm.plan.work import largest_work
from nvlm.sizes.memory import stage_memory

PLAIN = ["parallel.sequence=no", "parallel.layout=even"]
NO_OVERHEAD = {"memory_overhead": 0.0, "fragmentation": 0.0}


def stages(name: str, data_size: int, *overrides: str, assume: dict | None = None) -> list:
    config = load_config(REPOSITORY / f"configs/run/{name}.yaml", [*PLAIN, *overrides])
    assumptions = assumptions_for(CARDS["h100-80gb"], NO_OVERHEAD if assume is None else assume)
    work = largest_work(config)
    return [
        stage_bytes(config, stage, data_size, work, assumptions)
        for stage in range(config.parallel.pipeline)
    ]


def test_what_stays_is_what_megatron_allocates():
    config = load_config(REPOSITORY / "configs/run/nvlm_d_72b/sft.yaml", PLAIN)
    for number, stage in enumerate(stages("nvlm_d_72b/sft", 4)):
        counted = stage_memory(config, number, 4)
        assert (stage.parameters, stage.gradients, stage.optimizer) == (
            counted.parameters, counted.gradients, counted.optimizer,
        )  # fmt: skip
        assert stage.kept == counted.total
        assert stage.peak == max(stage.at_step, stage.at_checkpoint)


def test_earlier_stages_keep_more_micro_batches():
    """1F1B: as many as stages follow, and one; the images' besides on the first."""
    kept = [stage.activations for stage in stages("nvlm_d_72b/sft", 4)]
    assert kept[1:] == [3 * kept[3], 2 * kept[3], kept[3]]
    assert 4 * kept[3] < kept[0] < 4.1 * kept[3]
    # One micro-batch a step: no stage keeps more.
    few = [stage.activations for stage in stages("nvlm_d_72b/sft", 128)]
    assert few[1:] == [kept[3]] * 3


def test_recomputed_layers_keep_their_input():
    full = "train.recompute.language.granularity=full"
    ten = [full, "train.recompute.language.num_layers=10"]
    kept, half, none = (
        stages("nvlm_d_72b/sft", 4, *overrides)[3].activations for overrides in ([], ten, [full])
    )
    angles = 4 * 3200 * 128
    assert none == 20 * 3200 * 8192 * 2 + angles
    assert half == (kept + none + angles) / 2


def test_logits_are_on_the_last_stage_and_tiles_on_the_first():
    found = stages("nvlm_d_72b/sft", 4)
    assert [stage.logits > 0 for stage in found] == [False, False, False, True]
    # Those of the next step are on their way meanwhile, where workers read ahead.
    pixels = 32 * 7 * 3 * 448 * 448
    assert [stage.tiles for stage in found] == [2 * pixels, 0, 0, 0]
    found = stages("nvlm_d_72b/sft", 4, "data.num_workers=0")
    assert [stage.tiles for stage in found] == [pixels, 0, 0, 0]


def test_overhead_is_assumed():
    (alone,) = stages("tiny/sft", 1)
    (with_room,) = stages("tiny/sft", 1, assume={"memory_overhead": 1e9, "fragmentation": 0.5})
    coming = alone.activations + alone.tiles + alone.logits + alone.buffers
    assert alone.overhead == 0
    assert with_room.at_step == pytest.approx(alone.at_step + 1e9 + coming / 2)


def test_checkpoint_of_the_72b():
    """By hand: bf16 weights, and 12 bytes of each number that trains."""
    config = load_config(REPOSITORY / "configs/run/nvlm_d_72b/sft.yaml")
    written = checkpoint_bytes(config)
    assert written.weights == 2 * 79_379_593_344
    assert written.optimizer == 12 * (72_706_203_648 + 620_717_056)


RUNS = REPOSITORY / "configs" / "run"
FILES = sorted(path for path in RUNS.glob("*/*.yaml") if "GPU, by `nvlm plan`" in path.read_text())


def by_stage(config: RunConfig, num_gpus: int) -> list[StageBytes]:
    config, data_size = with_stage_layers(config), check_world_size(config, num_gpus)
    assumptions, work = assumptions_for(CARDS["h100-80gb"]), largest_work(config)
    return [
        stage_bytes(config, stage, data_size, work, assumptions)
        for stage in range(config.parallel.pipeline)
    ]


def test_the_large_models_say_what_they_take():
    models = {path.parent.name for path in FILES}
    of_the_paper = {f"nvlm_{fusion}_{size}" for fusion in "dxh" for size in ("72b", "34b")}
    assert models == {
        *of_the_paper,
        "internvit_6b_qwen2_7b",
        "internvit_300m_qwen3_4b_moe",
        "internvit_300m_qwen2_5_7b_128k",
        "internvit_300m_qwen2_5_7b_x",
        "internvit_300m_qwen2_5_7b_h",
    }
    for model in models:
        runs = {path for path in RUNS.glob(f"{model}/*.yaml") if path.stem != "stages"}
        assert runs <= set(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_memory_is_as_the_file_says(path):
    comments = " ".join(line.strip("# ") for line in path.read_text().splitlines())
    said = re.findall(r"([\d.]+) GB on (\d+)", comments)
    assert said
    for gigabytes, num_gpus in said:
        stages = by_stage(load_config(path), int(num_gpus))
        found = max(stage.at_step for stage in stages) / 1e9
        assert found == pytest.approx(float(gigabytes), rel=0.01), num_gpus
        assert max(stage.peak for stage in stages) < 0.9 * CARDS["h100-80gb"].memory_bytes


def test_what_the_files_leave_out_would_not_fit():
    """The 34B's optimizer on 8 GPUs; 40 GB with the 7B."""
    assert (
        max(s.at_step for s in by_stage(load_config("nvlm_d_34b/sft"), 8))
        > CARDS["h100-80gb"].memory_bytes
    )
    wider = load_config("internvit_6b_qwen2_7b/sft", ["parallel.tensor=4"])
    (alone,) = by_stage(wider, 8)
    assert 0.95 * 40e9 < alone.peak < 40e9
