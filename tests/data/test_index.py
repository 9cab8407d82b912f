"""The index: what it holds, when it is built anew, and what it rejects."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_writing import as_json, draw_image, make_sample, write_shard

from nvlm.data.encode import SampleEncoder
from nvlm.data.image import decode_image
from nvlm.data.index import build_indexes_with_progress, open_indexes
from nvlm.data.order import plan_source
from nvlm.data.sample import iterate_samples
from nvlm.data.tiling import cut_tiles
from nvlm.errors import DataError


def test_planned_lengths_and_tiles_are_the_encoded_ones(make_config):
    for overrides in (
        {"sequence_length": 512},
        {"sequence_length": 160},  # single images lose tiles, long texts are dropped
        {"sequence_length": 300, "max_tiles_per_sequence": 7, "max_num_tiles": 4},
        {"tile_tags": "none", "use_thumbnail": False, "image_boundary": "separate"},
    ):
        config = make_config()
        stage = config.stage.model_copy(update=overrides)
        # Not through the checks: the tight lengths that make samples lose tiles are refused there.
        config = config.model_copy(update={"stage": stage})
        encoder = SampleEncoder.from_config(config)
        for index in open_indexes(config, encoder):
            planned = plan_source(config, index)
            dropped = {skipped.key for skipped in planned.dropped}
            rows = {index.keys[row]: row for row in planned.rows}
            assert dropped.isdisjoint(rows)
            assert len(dropped) + len(rows) == len(index)
            for key, messages, _, images in iterate_samples(index.shards):
                row = rows.get(key, index.keys.index(key))
                max_num_tiles = int(planned.max_num_tiles[row])
                num_tiles = [
                    len(cut_tiles(decode_image(i), max_num_tiles, stage.use_thumbnail, 112))
                    for i in images
                ]
                assert num_tiles == planned.tiles_per_image(row)
                length = len(encoder.encode(messages, num_tiles).tokens)
                assert length == planned.lengths[row]
                budget = stage.max_tiles_per_sequence or 10**9
                fits = length <= stage.sequence_length and sum(num_tiles) <= budget
                assert fits == (key in rows)
                if fits and max_num_tiles < stage.max_num_tiles:
                    # One more tile would have been too many.
                    more = [
                        len(cut_tiles(decode_image(i), max_num_tiles + 1, stage.use_thumbnail, 112))
                        for i in images
                    ]
                    length = len(encoder.encode(messages, more).tokens)
                    assert length > stage.sequence_length or sum(more) > budget


def test_index_is_kept_until_shards_or_template_change(make_config, shards: Path, tmp_path: Path):
    root = tmp_path / "copy"
    shutil.copytree(shards, root)
    own = [f"data.root={root}", f"data.index_dir={tmp_path / 'index'}"]
    config = make_config(*own)

    def build_count() -> list[str]:
        built = []
        open_indexes(config, progress=lambda source, done, total: built.append(source))
        return sorted(set(built))

    assert build_count() == ["pairs", "single", "text"]
    assert build_count() == []
    # Touched: read again, but the content is the same, so a run goes on.
    before = [index.content_hash for index in open_indexes(config)]
    os.utime(root / "train" / "text" / "text-000000.tar", ns=(1, 1))
    assert build_count() == ["text"]
    assert [index.content_hash for index in open_indexes(config)] == before
    write_shard(root / "train" / "text" / "text-000001.tar", [make_sample("x", "Hi", "Ho", [])])
    assert build_count() == ["text"]
    after = [index.content_hash for index in open_indexes(config)]
    assert [a == b for a, b in zip(before, after)] == [True, True, False]
    # Another template has its own file; the first stays valid.
    original, config = config, make_config(*own, "stage.system_message=Look.")
    assert build_count() == ["pairs", "single", "text"]
    config = original
    assert build_count() == []
    # A file that is not whole is built anew; nothing is left beside it.
    for file in (tmp_path / "index").glob("train-text-*.parquet"):
        file.write_bytes(file.read_bytes()[:100])
    assert build_count() == ["text"]
    assert build_count() == []
    assert not list((tmp_path / "index").glob("*.tmp"))


def test_processes_may_build_at_once(make_config, tmp_path: Path):
    config = make_config(f"data.index_dir={tmp_path / 'index'}")
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        built = [pool.submit(open_indexes, config) for _ in range(3)]
        hashes = {tuple(index.content_hash for index in b.result(timeout=60)) for b in built}
    assert len(hashes) == 1
    assert len(list((tmp_path / "index").glob("*.parquet"))) == 3


def test_rejects_are_named_with_their_reason(make_config, tmp_path: Path, capsys):
    image = draw_image(50, 40)
    good = [make_sample(f"good{i}", "What?", "That.", [image]) for i in range(3)]
    bad = {
        "json": {"__key__": "json", "json": b'{"messages": [', "0.png": image},
        "messages": {"__key__": "messages", "json": b"{}"},
        "image": make_sample("image", "What?", "That.", [b"no image"]),
        "image_count": make_sample("image_count", "What?", "That.", [image])
        | {"json": as_json(("user", "What?"), ("assistant", "That."))},
        "missing_member": {"__key__": "missing_member", "0.png": image},
    }
    folder = tmp_path / "data" / "train" / "mixed"
    write_shard(folder / "a.tar", [good[0], *bad.values(), good[1]])
    (folder / "b.tar").write_bytes(b"")
    write_shard(folder / "c.tar", [good[2]])
    config = make_config(f"data.root={tmp_path / 'data'}")
    (index,) = build_indexes_with_progress(config)
    assert index.keys == ["good0", "good1", "good2"]
    assert index.tasks == ["test"] * 3
    rejected = {(r.shard, r.key): r.reason for r in index.rejected}
    assert rejected == {("a.tar", key): key for key in bad} | {("b.tar", ""): "shard"}
    assert all(r.source == "mixed" and r.detail for r in index.rejected)
    printed = capsys.readouterr().out
    assert "rejected mixed a.tar image: image: not readable as an image" in printed
    # From the file as from the building.
    assert open_indexes(config)[0].rejected == index.rejected


def test_long_headers_are_read_whole(make_config, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", icc_profile=bytes(200_000))
    shard = tmp_path / "data" / "train" / "a.tar"
    write_shard(shard, [make_sample("long", "What?", "That.", [encoded.getvalue()])])
    (index,) = open_indexes(make_config(f"data.root={tmp_path / 'data'}"))
    assert index.source == "train"
    assert (index.image_width.tolist(), index.image_height.tolist()) == ([300], [300])


def test_missing_tokenizer_is_one_clear_line(make_config, tmp_path: Path):
    with pytest.raises(DataError, match=r"model\.tokenizer .*nowhere"):
        open_indexes(make_config(f"model.tokenizer={tmp_path / 'nowhere'}"))


def test_tokenizer_larger_than_the_model(make_config):
    with pytest.raises(DataError, match=r"more than model\.language\.vocab_size 256"):
        open_indexes(make_config("model.language.vocab_size=256"))
