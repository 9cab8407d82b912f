"""Data ranks write, read and draw a share of the weights each, and hold nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import checkpoint_memory, spawn

from nvlm.config import load_config
from nvlm.plan.stage_bytes import StageBytes, checkpoint_bytes, staged_bytes
from nvlm.sizes.memory import stage_memory

pytestmark = [pytest.mark.parallel, pytest.mark.slow]
# What a process takes for Python's own objects meanwhile; a copy of all weights is 84 MB.
SMALL = 24 * 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    spawn.run_program_or_fail(2, checkpoint_memory.__file__, folder, log=folder / "log")
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def bytes_of(folder: Path, pattern: str = "*.distcp") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def test_memory_of_a_save_and_a_load_is_that_of_a_tensor_or_two(ranks):
    for rank in ranks:
        copy_of_weights = 4 * rank["parameters"]
        bound = 2 * rank["largest"] + SMALL
        assert bound < copy_of_weights / 2
        assert rank["save peak"] <= bound and rank["load peak"] <= bound
        # Plain Megatron-core: all ranks' parameters and both moments, and more than once.
        assert rank["plain save peak"] > 5 * copy_of_weights
        assert rank["plain load peak"] > 3 * copy_of_weights


def test_memory_of_a_save_in_the_background_is_what_the_plan_says(ranks, folder):
    config = load_config(folder / "run/checkpoints/step_00000002/config.yaml")
    memory = stage_memory(config, 0, 2)
    kept = {"parameters": memory.parameters, "optimizer": memory.optimizer}
    nothing = dict.fromkeys(("gradients", "activations", "tiles", "logits", "buffers"), 0)
    planned = staged_bytes(config, StageBytes(**kept, **nothing, copied=0, overhead=0), 2)
    for number, rank in enumerate(ranks):
        written = bytes_of(folder / "run/checkpoints/step_00000003", f"__{number}_*.distcp")
        assert written == pytest.approx(planned, rel=0.02)
        # The copy, and a tensor on its way to the file.
        assert planned < rank["first background save peak"] < planned + rank["largest"] + SMALL
        assert rank["next background save peak"] < rank["largest"] + SMALL


def test_a_plan_knows_the_size(folder):
    """But for the files' own headers."""
    checkpoint = folder / "run/checkpoints/step_00000002"
    planned = checkpoint_bytes(load_config(checkpoint / "config.yaml"))
    assert bytes_of(checkpoint) == pytest.approx(planned.total, rel=0.02)


def test_data_ranks_write_and_read_equal_shares(ranks, folder):
    checkpoint = folder / "run/checkpoints/step_00000002"
    total = bytes_of(checkpoint)
    written = [bytes_of(checkpoint, f"__{rank}_*.distcp") for rank in range(2)]
    assert sum(written) == total and max(written) < 0.51 * total
    for rank in ranks:
        assert rank["load read"] < 0.53 * total
        assert rank["plain load read"] > total
        assert rank["equal"] and rank["plain equal"]
    assert not bytes_of(folder / "plain1"), "plain Megatron-core now writes on other ranks too"


def test_data_ranks_draw_equal_shares_and_nothing_that_a_checkpoint_has(ranks):
    for rank in ranks:
        assert rank["drawn equal"]
        assert 0.45 * rank["parameters"] < rank["drawn"] < 0.52 * rank["parameters"]
        assert rank["drawn at a time"] <= 2**18 < rank["largest"] // 4
        assert rank["drawn before a load"] == 0 and rank["generator unchanged"]
