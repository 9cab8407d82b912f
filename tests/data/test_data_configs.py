"""The ready lists of sources: complete, and every prompt pool that they name is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.data.samples.prompts import load_prompt_pools
from nvlm.data.shards.sources import flatten_blend

# Sources of the paper's tables 4 and 6, those with several parts counted by part.
NUM_SOURCES = {"nvlm_pretrain": 18, "nvlm_sft": 97, "mm1_pretrain": 7}


def load(name: str, tmp_path: Path) -> RunConfig:
    run = tmp_path / "run.yaml"
    bases = [f"{REPOSITORY}/configs/{part}.yaml" for part in
             ("run/nvlm_d_72b/sft", f"data/{name}")]  # fmt: skip
    run.write_text(f"base: {bases}\n")
    return load_config(run)


@pytest.mark.parametrize("name", NUM_SOURCES)
def test_sources_are_all_there_with_prompts_that_exist(tmp_path: Path, name: str):
    config = load(name, tmp_path)
    leaves = flatten_blend(config.data.blend or {})
    assert len(leaves) == NUM_SOURCES[name]
    pools = load_prompt_pools(None)
    assert {s.prompts for _, s in leaves.values()} - {None} <= pools.keys()
    assert sum(share for share, _ in leaves.values()) == pytest.approx(1)


def test_mm1_mix_is_5_to_5_to_1(tmp_path: Path):
    leaves = flatten_blend(load("mm1_pretrain", tmp_path).data.blend or {})
    shares = {name: share for name, (share, _) in leaves.items()}
    names = ("cc3m", "cc12m", "coyo", "vecap")
    captions = sum(shares[name] for name in names)
    interleaved = shares["obelics"] + shares["mmc4"]
    assert [captions, interleaved, shares["c4"]] == pytest.approx([5 / 11, 5 / 11, 1 / 11])
    assert {leaves[name][1].prompts for name in names} == {"caption"}
