"""What sequences hold: the most of a configuration, what was said, what an index has."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.data.index.source_index import open_indexes
from nvlm.data.order.contents import contents
from nvlm.data.order.planner import Planner
from nvlm.errors import ConfigError
from nvlm.plan.work import largest_work, stated_work
from nvlm.views.plan import work_of


def load(name: str, *overrides: str):
    return load_config(REPOSITORY / f"configs/run/{name}.yaml", overrides)


def test_most_of_a_configuration():
    unpacked = largest_work(load("nvlm_d_72b/sft"))
    assert (unpacked.num_tiles, unpacked.token_pairs, unpacked.num_samples) == (7, 3200**2, 1)
    packed = largest_work(load("internvit_6b_qwen2_7b/sft"))
    assert (packed.num_tiles, packed.most_tiles) == (16, 16)  # 256 tokens each in 4096
    budget = largest_work(load("internvit_6b_qwen2_7b/sft", "stage.max_tiles_per_sequence=9"))
    assert budget.most_tiles == 9


def test_what_is_said():
    config = load("internvit_6b_qwen2_7b/sft")
    work = stated_work(config, largest_work(config), 5.5, 1000)
    assert (work.num_tiles, work.most_tiles, work.num_samples) == (5.5, 16, 4)
    assert work.token_pairs == 4 * 1000**2 + 96**2
    assert work.source.startswith("--tokens 1000 and --tiles 5.5; else the most")
    unpacked = load("nvlm_d_72b/sft")
    alone = stated_work(unpacked, largest_work(unpacked), None, 1200)
    assert (alone.num_samples, alone.token_pairs) == (1, 1200**2 + 2000**2)
    for tiles, tokens in ((None, 3201), (None, 0), (13, None), (-1, None)):
        with pytest.raises(ConfigError, match="sequence"):
            stated_work(unpacked, largest_work(unpacked), tiles, tokens)


def test_what_an_index_has(make_config, tmp_path):
    """The same as the packs that training would read, one by one."""
    config = make_config("train.steps=3", f"data.index_dir={tmp_path}/index")
    assert contents(config) is None
    planner = Planner(config, open_indexes(config))
    packs = [pack for _ in range(3) for pack in planner.next_step()]
    found = contents(config)
    assert found.num_samples == sum(len(pack.draws) for pack in packs) / len(packs)
    assert found.num_tiles == sum(pack.draws.num_tiles.sum() for pack in packs) / len(packs)
    assert found.most_tiles == max(pack.draws.num_tiles.sum() for pack in packs)
    tokens = [pack.draws.length.tolist() for pack in packs]
    assert found.num_tokens == sum(map(sum, tokens)) / len(packs)
    length = config.stage.sequence_length
    pairs = [sum(n * n for n in one) + (length - sum(one)) ** 2 for one in tokens]
    assert found.token_pairs == pytest.approx(sum(pairs) / len(packs))
    assert work_of(config, None, None) == found
    assert found.imbalance.keys() == {2, 4} and min(found.imbalance.values()) >= 1
