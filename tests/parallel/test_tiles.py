"""Who encodes which tiles."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model
from helpers.parts_of_steps import part_of

from nvlm.batch import StepBatch
from nvlm.config import load_config
from nvlm.errors import ConfigError
from nvlm.parallel.broadcast import next_step_batch
from nvlm.parallel.tiles import share_number, share_sizes

TINY = "configs/run/tiny/sft.yaml"


@pytest.mark.parametrize("num_shares", [1, 2, 4, 7])
@pytest.mark.parametrize("num_tiles", [0, 1, 3, 4, 29])
def test_shares_differ_by_one_tile_at_most(num_tiles: int, num_shares: int):
    sizes = share_sizes(num_tiles, num_shares)
    assert len(sizes) == num_shares
    assert sum(sizes) == num_tiles
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_every_process_has_a_share_of_its_own():
    numbers = [share_number(tensor, stage, 3) for tensor in range(4) for stage in range(3)]
    assert numbers == list(range(12))


def test_one_process_encodes_all(parallel):
    config = small_model.small_config()
    micro_batches = [small_model.batch(config, n, [80], num_tiles=n) for n in (2, 0, 1)]
    read = iter([part_of(StepBatch(micro_batches, [], {}), parallel)])
    step = next_step_batch(read, parallel, shares_tiles=True)
    assert step is not None and step.tile_share is not None
    assert step.tile_share.num_tiles == [2, 0, 1]
    assert step.tile_share.sizes == [3]
    assert torch.equal(step.tile_share.tiles, torch.cat([m.tiles for m in micro_batches]))
    # A view of no tiles would keep their memory, and take them along to every process.
    assert all(m.tiles.untyped_storage().nbytes() == 0 for m in step.micro_batches)
    assert next_step_batch(read, parallel, shares_tiles=True) is None


@pytest.mark.parametrize(
    "freeze", ["[]", "['language_model.*']", "['vision_model.decoder.*']", "['vision_model.?']"]
)
def test_a_trained_encoder_is_refused(freeze: str):
    with pytest.raises(ConfigError, match=r"tile_parallel needs a frozen vision model.*vision_m"):
        load_config(TINY, [f"stage.freeze={freeze}", "parallel.vision=tile_parallel"])


@pytest.mark.parametrize(
    "freeze", ["['vision_model.*']", "['vision*']", "['*.norm.*','vision_m*']"]
)
def test_a_frozen_encoder_need_not_be_divisible(freeze: str):
    overrides = [f"stage.freeze={freeze}", "parallel.tensor=2", "data.blend=null"]
    heads = "model.vision.num_stored_attention_heads=5"
    load_config(TINY, [*overrides, heads, "parallel.vision=tile_parallel"])
    with pytest.raises(ConfigError, match=r"does not divide model\.vision\.num_stored"):
        load_config(TINY, [*overrides, heads])
