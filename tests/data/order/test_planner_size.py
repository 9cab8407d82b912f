"""The planner over sources of 100 million samples each: memory stays flat, the state small."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from helpers.paths import REPOSITORY

from nvlm.config import changed, load_config
from nvlm.config.schema import SourceConfig
from nvlm.data.order import planner as planner_module
from nvlm.data.order.draws import Draw, Draws, PlannedDraws
from nvlm.data.order.permutation import derive_key, mix
from nvlm.data.shards.sources import flatten_blend

NUM_SAMPLES = 10**8
NUM_SOURCES = 20


class ComputedIndex:
    """An index whose columns are computed, not stored."""

    rejected = ()

    def __init__(self, number: int, name: str | None = None):
        self.source = name or f"a source with the number {number:02}"
        self.template: dict = {}
        self.settings = SourceConfig()
        self.content_hash = f"{derive_key(number):064x}"

    def __len__(self) -> int:
        return NUM_SAMPLES


class ComputedSource:
    """0 to 7 tiles and a text of varying length for every row."""

    def __init__(self, config, settings: SourceConfig, index: ComputedIndex):
        self.settings, self.index = settings, index

    def plan(self, draws: Draws) -> PlannedDraws:
        rows = draws.row
        hashes = mix(rows.astype(np.uint64), 7)
        num_tiles = np.array([0, 1, 3, 3, 5, 7, 7, 7])[hashes >> np.uint64(61)]
        lengths = 261 * num_tiles + (20 + hashes % np.uint64(400)).astype(np.int64)
        none, zero = np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.int64)
        return PlannedDraws(
            **vars(draws),
            length=lengths,
            num_tiles=num_tiles,
            max_num_tiles=zero + 6,
            num_turns=zero + 1,
            variant=zero,
            fits=~none,
            shortened_tiles=none,
            cut_turns=none,
        )


def drawn_next(planner: planner_module.Planner) -> list[list[Draw]]:
    packs = planner.next_step()
    assert packs is not None
    return [list(pack.draws) for pack in packs]


def num_bytes(planner: planner_module.Planner) -> int:
    """Of the state, as checkpoints write it."""
    return len(json.dumps(planner.state(), separators=(",", ":")))


@pytest.mark.parametrize("sequence_length", [4096, 16384])
def test_memory_is_flat_and_the_state_small(monkeypatch, sequence_length: int):
    monkeypatch.setattr(planner_module, "PlannedSource", ComputedSource)
    blend = {f"a source with the number {n:02}": 1 + n / 7 for n in range(NUM_SOURCES)}
    config = load_config(
        REPOSITORY / "configs" / "run" / "nvlm_d_72b" / "sft.yaml",
        [
            f"stage.sequence_length={sequence_length}",
            f"stage.max_tiles_per_sequence={sequence_length * 15 // 4096}",
            "stage.packing=true",
            "train.global_batch_size=16",
        ],
    )
    config = changed(config, {"data.blend": blend})
    tracemalloc.start()
    try:
        planner = planner_module.Planner(config, [ComputedIndex(n) for n in range(NUM_SOURCES)])
        peaks, largest, rows, num_tokens = [], 0, [], 0
        for _ in range(3):
            tracemalloc.reset_peak()
            for _ in range(40):
                packs = planner.next_step()
                largest = max(largest, num_bytes(planner))
                rows += [draw.row for pack in packs for draw in pack.draws]
                num_tokens += sum(draw.length for pack in packs for draw in pack.draws)
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    # Measured 3.4 and 4.6 KB, most of it names and hashes of sources and carried samples.
    assert largest <= 10_000
    # Measured 2.6 and 3.3 MB: the packs of two groups of steps, and `rows` here.
    assert max(peaks) < 10e6
    assert peaks[2] < 1.2 * peaks[1] + 1e6
    assert 1 - num_tokens / (120 * 16 * sequence_length) < 0.01
    # From all over the sources.
    assert min(rows) < 0.05 * NUM_SAMPLES and max(rows) > 0.95 * NUM_SAMPLES
    # And a new process goes on without running through what came before.
    resumed = planner_module.Planner(config, [ComputedIndex(n) for n in range(NUM_SOURCES)])
    resumed.load_state(json.loads(json.dumps(planner.state())))
    assert drawn_next(resumed) == drawn_next(planner)


def test_state_of_the_longest_ready_blend_is_small(monkeypatch):
    monkeypatch.setattr(planner_module, "PlannedSource", ComputedSource)
    config = load_config(
        REPOSITORY / "configs" / "run" / "nvlm_d_72b" / "sft.yaml",
        [
            "stage.sequence_length=16384",
            "stage.max_tiles_per_sequence=58",
            "stage.packing=true",
            "train.global_batch_size=16",
        ],
    )
    names = sorted(flatten_blend(config.data.blend or {}))
    assert len(names) == 97
    planner = planner_module.Planner(
        config, [ComputedIndex(n, name) for n, name in enumerate(names)]
    )
    largest = 0
    for _ in range(40):
        planner.next_step()
        largest = max(largest, num_bytes(planner))
    # Measured 8.7 KB.
    assert largest <= 10_000
