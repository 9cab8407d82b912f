"""The memory that the shipped files say they take is what a plan says, and fits their GPUs."""

from __future__ import annotations

import re

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.config.checks import check_world_size
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.hardware import CARDS
from nvlm.plan.layout import with_stage_layers
from nvlm.plan.stage_bytes import StageBytes, stage_bytes
from nvlm.plan.work import largest_work

CARD = CARDS["h100-80gb"]
RUNS = REPOSITORY / "configs" / "run"
FILES = sorted(path for path in RUNS.glob("*/*.yaml") if "GPU, by `nvlm plan`" in path.read_text())


def by_stage(config: RunConfig, num_gpus: int) -> list[StageBytes]:
    config, data_size = with_stage_layers(config), check_world_size(config, num_gpus)
    assumptions, work = assumptions_for(CARD), largest_work(config)
    return [
        stage_bytes(config, stage, data_size, work, assumptions)
        for stage in range(config.parallel.pipeline)
    ]


def test_the_large_models_say_what_they_take():
    models = {path.parent.name for path in FILES}
    assert models == {"nvlm_d_72b", "nvlm_d_34b", "internvit_6b_qwen2_7b"}
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
        assert max(stage.peak for stage in stages) < 0.9 * CARD.memory_bytes


def test_what_the_files_leave_out_would_not_fit():
    """The 34B's optimizer on 8 GPUs; 40 GB with the 7B."""
    assert max(s.at_step for s in by_stage(load_config("nvlm_d_34b/sft"), 8)) > CARD.memory_bytes
    wider = load_config("internvit_6b_qwen2_7b/sft", ["parallel.tensor=4"])
    (alone,) = by_stage(wider, 8)
    assert 0.95 * 40e9 < alone.peak < 40e9
