"""Levels of alignment from shards to rows: which samples bring theirs, and how they are shown."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
import torch
from helpers.loading import build_loader
from helpers.shard_writing import as_json, draw_image, make_sample, write_shard
from rich.console import Console

from nvlm.batch import MicroBatch
from nvlm.data.index.source_index import open_indexes
from nvlm.views.preview import build_preview
from nvlm.views.preview_terminal import print_preview

SAMPLES = "stage.alignment={levels_from: samples, num_levels: 4}"
GATE = "stage.alignment={levels_from: gate, num_levels: 4}"
# Of the tiny model: the lowest level's token.
FIRST = 1024
GOOD = {"low": 0, "middle": 2, "caption": 1, "high": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    image = draw_image(230, 110)

    def leveled(key: str, **fields: object) -> dict:
        turns = [("user", "<image>\nWhat?"), ("assistant", key * 3)]
        return {"__key__": key, "0.png": image, "json": as_json(*turns, **fields)}

    samples = [leveled(key, alignment_level=GOOD[key]) for key in GOOD if key != "caption"]
    level = json.dumps({"alignment_level": GOOD["caption"]}).encode()
    samples.append({"__key__": "caption", "png": image, "txt": b"A square.", "json": level})
    samples.append(make_sample("text", "What is 1 and 1?", "2", []))
    later = [("user", "Hi"), ("assistant", "Ho"), ("user", "<image>\nWhat?"), ("assistant", "It.")]
    samples.append({"__key__": "later", "0.png": image, "json": as_json(*later)})
    samples += [leveled("missing"), leveled("beyond", alignment_level=4)]
    samples.append(leveled("words", alignment_level="2"))
    folder = tmp_path_factory.mktemp("leveled")
    write_shard(folder / "train" / "pairs" / "pairs-000000.tar", samples)
    return folder


def read_batches(config, num_steps: int = 3) -> list[MicroBatch]:
    steps = itertools.islice(build_loader(config, open_indexes(config), 0, 1), num_steps)
    return [micro_batch for step in steps for micro_batch in step.micro_batches]


def vectors(batch: MicroBatch) -> dict[str, list[int]]:
    """Sample -> its tokens behind the vocabulary; each stands at the document's beginning."""
    found = {}
    starts = batch.document_starts
    for key, start, end in zip(batch.sample_keys, starts, starts[1:], strict=False):
        is_vector = batch.tokens[0, start:end] >= FIRST
        found[key.partition("/")[2]] = batch.tokens[0, start:end][is_vector].tolist()
        assert not is_vector[1:].any()
    return found


def test_samples_bring_their_levels_or_are_rejected_by_name(make_config, root):
    config = make_config(f"data.root={root}", SAMPLES, "data.max_skipped_share=1")
    (index,) = open_indexes(config)
    rejected = {r.key: (r.shard, r.reason, r.detail) for r in index.rejected}
    assert {key: r[:2] for key, r in rejected.items()} == dict.fromkeys(
        ("missing", "beyond", "words"), ("pairs-000000.tar", "alignment_level")
    )
    assert "no field alignment_level, which stage.alignment asks of" in rejected["missing"][2]
    assert "alignment_level is 4, expected a number from 0 to 3" in rejected["beyond"][2]
    seen: dict[str, list[int]] = {}
    for batch in read_batches(config):
        seen |= vectors(batch)
        assert batch.gated is None
    expected = {key: [FIRST + level] for key, level in GOOD.items()}
    assert seen == {**expected, "text": [], "later": []}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_a_gate_reads_travels_with_its_row(make_config, root, num_workers: int):
    """Levels are not asked for, and every document begins with the same vector."""
    config = make_config(f"data.root={root}", GATE, f"data.num_workers={num_workers}")
    assert not open_indexes(config)[0].rejected
    for batch in read_batches(config):
        found, gated = vectors(batch), batch.gated
        assert all(found[key] == [FIRST + 3] for key in found if key not in ("text", "later"))
        positions = (batch.tokens[0] >= FIRST).nonzero()[:, 0]
        assert gated is not None and torch.equal(gated.positions, positions)
        assert len(gated.of_tokens) == batch.tokens.shape[1]
        assert len(gated.of_tiles) == len(batch.tiles)
        # Each has two tiles and a thumbnail, which alone is read; `later`'s is not.
        read = [
            number
            for key in batch.sample_keys
            if not key.endswith("text")
            for number in (-1, -1, -1 if key.endswith("later") else 1)
        ]
        assert (gated.of_tiles >= 0).tolist() == [number > 0 for number in read]
        assert gated.of_tiles[gated.of_tiles >= 0].tolist() == [*range(len(positions))]
        for number, place in enumerate(positions.tolist()):
            own = (gated.of_tokens == number).nonzero()[:, 0]
            assert own.min() == place + 1 and not batch.image_mask[0, own].any()
            # What follows is the first answer's first token.
            assert batch.labels[0, own.max()] == batch.tokens[0, own.max() + 1]
            assert (batch.labels[0, place : own.max()] < 0).all()


def test_the_preview_names_them(make_config, root):
    for switch, names in ((SAMPLES, {f"<alignment_level_{n}>" for n in range(4)}),
                          (GATE, {"<alignment>"})):  # fmt: skip
        config = make_config(f"data.root={root}", switch, "data.max_skipped_share=1")
        preview = build_preview(config, 24)
        spans = [span for sample in preview.samples for span in sample.spans]
        shown = {span.text for span in spans if span.text.startswith("<align")}
        assert shown == names
        written = io.StringIO()
        print_preview(preview, Console(file=written, width=400))
        assert all(name in written.getvalue() for name in names)
