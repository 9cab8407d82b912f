"""Every hostile shard, JSON and text is read, repaired or skipped, as its rule says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.hostile_text import CASES, Case
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.config.schema import SourceConfig
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.order.draws import Draws
from nvlm.data.order.lengths import PlannedSource
from nvlm.data.samples.repairs import noting_repairs
from nvlm.data.shards.shard import ShardReader
from nvlm.data.text.encode import SampleEncoder

POOLS = {"caption": ["Describe it."], "vqa": ["{question}"]}


@pytest.fixture(scope="module")
def opened(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> tuple[RunConfig, SourceIndex]:
    """The index of a source with one shard per case."""
    root = tmp_path_factory.mktemp("hostile")
    folder = root / "data" / "train" / "odd"
    folder.mkdir(parents=True)
    for number, case in enumerate(CASES):
        shard, content = folder / f"{number:03d}.tar", case.make()
        if content is None:
            shard.symlink_to(root / "gone.tar")
        else:
            shard.write_bytes(content)
    (root / "pools.yaml").write_text(yaml.safe_dump(POOLS))
    config = load_config(
        REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml",
        [
            f"model.tokenizer={tokenizer_folder}",
            f"data.root={root / 'data'}",
            f"data.prompt_pools={root / 'pools.yaml'}",
            f"run.dir={root / 'run'}",
        ],
    )
    (index,) = open_indexes(config)
    return config, index


def test_there_are_many_kinds_and_each_has_its_own_name():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_text(opened: tuple[RunConfig, SourceIndex], case: Case):
    config, index = opened
    shard = f"{CASES.index(case):03d}.tar"
    rows = [row for row in range(len(index)) if index.shard_path(row).name == shard]
    rejected = [r for r in index.rejected if r.shard == shard]
    assert all(r.source == "odd" and 0 < len(r.detail) < 300 for r in rejected)
    odd = [row for row in rows if "odd" in index.key(row)]
    keys = {index.key(row) for row in rows}
    # Its neighbours are none the worse.
    if not case.loses_later:
        assert {"good", "later"} <= keys
    elif case.outcome != "shard" or rows:
        assert "good" in keys
    if not case.is_used:
        assert case.outcome in [r.reason for r in rejected]
        assert not odd or case.rule == "the first part is used, the later one skipped"
        return
    assert [r.reason for r in rejected] == (["shard"] if case.loses_later else [])
    (row,) = odd
    assert case.turns is not None
    with noting_repairs() as repairs:
        _check_use(config, index, row, case.turns)
    # What is called repaired is counted, and nothing else is.
    assert bool(repairs) == (case.outcome == "repaired"), repairs


def _check_use(config: RunConfig, index: SourceIndex, row: int, turns: tuple[str, ...]) -> None:
    """It is encoded as planned, and no text of it has become a control token."""
    encoder = SampleEncoder.from_config(config)
    source = PlannedSource(config, SourceConfig(), index)
    plans = source.plan(Draws.of_source(0, np.array([row]), np.zeros(1, np.int64)))
    shard = str(index.shard_path(row))
    with ShardReader() as reader:
        texts = {n: reader.read(shard, where) for n, where in index.text_ranges(row).items()}
    sample = index.parser.parse(texts, len(index.image_ranges(row)))
    messages = sample.conversation(int(plans.variant[0]))
    assert tuple(message["content"] for message in messages) == turns
    grids = source.grids(row, int(plans.max_num_tiles[0]), int(plans.num_turns[0]))
    encoded = encoder.encode(messages, grids)
    assert len(encoded.tokens) == plans.length[0]
    tokenizer = encoder.tokenizer
    num_turns = 0 if sample.kind == "text" else 1 + len(messages)  # with the system turn
    tokens = encoded.tokens.tolist()
    assert tokens.count(tokenizer.control_ids["<|im_start|>"]) == num_turns
    assert tokens.count(tokenizer.end_id) == max(num_turns, 1)
    assert tokens.count(tokenizer.image_id) == encoded.image_mask.sum()
    assert tokens.count(tokenizer.pad_id) == 0


def test_reasons_are_counted(opened: tuple[RunConfig, SourceIndex]):
    _, index = opened
    for reason in {case.outcome for case in CASES if not case.is_used}:
        assert index.num_rejected[reason] == [r.reason for r in index.rejected].count(reason) > 0
