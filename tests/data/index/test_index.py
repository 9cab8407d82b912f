"""The index: what it holds, when it is rebuilt, and what it rejects."""

from __future__ import annotations

import gc
import io
import json
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from helpers.shard_writing import as_json, draw_image, make_sample, write_shard
from PIL import Image

from nvlm.cli import app
from nvlm.config import save_config
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.order.fingerprint import check_same, data_fingerprint
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import ConfigError, DataError
from nvlm.files import write_bytes
from nvlm.views.index_report import build_indexes_with_progress

COLUMNS = ("key_hash", "turn_tokens", "turn_images", "image_width", "lead_single", "lead_multiple")


def keys(index: SourceIndex) -> list[str]:
    return [index.key(row) for row in range(len(index))]


def test_columns_are_mapped_from_files_and_name_the_samples(make_config, shards: Path):
    pairs, single, _ = open_indexes(make_config())
    assert keys(pairs) == [f"p{i:03d}" for i in range(10)]
    assert keys(single) == [f"s{shard}-{i:03d}" for shard in range(2) for i in range(20)]
    assert [single.shard_path(row).name for row in (0, 19, 20)] == [
        "single-000000.tar", "single-000000.tar", "single-000001.tar",
    ]  # fmt: skip
    assert (single.task(3), single.kind(3)) == ("test", "conversation")
    assert pairs.image_starts.tolist() == list(range(0, 21, 2))
    assert (pairs.image_width[:2].tolist(), pairs.image_height[:2].tolist()) == (
        [120, 230],
        [110] * 2,
    )
    assert pairs.turn_images[:2].tolist() == [2, 0]
    (json_range,) = pairs.text_ranges(4).values()
    with pairs.shard_path(4).open("rb") as file:
        file.seek(json_range.offset)
        assert b"Do they differ?" in file.read(json_range.size)
    for column in COLUMNS:
        assert isinstance(getattr(single, column).base, np.memmap | mmap.mmap)


def test_index_is_kept_until_shards_or_template_change(make_config, shards: Path, tmp_path: Path):
    root = tmp_path / "copy"
    shutil.copytree(shards, root)
    own = [f"data.root={root}", f"data.index_dir={tmp_path / 'index'}"]
    config = make_config(*own)

    def build_count() -> list[str]:
        built = []
        open_indexes(config, show=lambda progress: built.append(progress.source))
        return sorted(set(built))

    assert build_count() == ["pairs", "single", "text"]
    assert build_count() == []
    # Touched: read again, but the content is the same, so a run goes on.
    before = [index.content_hash for index in open_indexes(config)]
    os.utime(root / "train" / "text" / "text-000000.tar", ns=(1, 1))
    assert build_count() == ["text"]
    assert [index.content_hash for index in open_indexes(config)] == before
    # Added: only that one is read.
    write_shard(root / "train" / "text" / "text-000001.tar", [make_sample("x", "Hi", "Ho", [])])
    read = []
    open_indexes(config, show=lambda progress: read.append(progress.num_shards))
    assert read == [1]
    after = [index.content_hash for index in open_indexes(config)]
    assert [a == b for a, b in zip(before, after)] == [True, True, False]
    # Another template has its own file; the first stays valid.
    original, config = config, make_config(*own, "stage.system_message=Look.")
    assert build_count() == ["pairs", "single", "text"]
    config = original
    assert build_count() == []
    # A file that is not whole is joined again, without reading a shard; nothing is left beside it.
    for file in (tmp_path / "index").glob("text-*/columns-*/columns.bin"):
        file.write_bytes(file.read_bytes()[:-100])
    assert [index.content_hash for index in open_indexes(config)] == after
    assert build_count() == []
    assert not list((tmp_path / "index").rglob("*.tmp"))


def test_statistics_are_no_part_of_what_a_run_goes_on_with(make_config, tmp_path, monkeypatch):
    """Columns that decide nothing of the order leave the content's hash, and so a run, as it is."""
    before = open_indexes(make_config())
    original = SampleEncoder.measure

    def with_other_counts(self, samples):
        measured = original(self, samples)
        return [
            replace(lengths, turn_trained=[777] * len(lengths.turn_trained)) for lengths in measured
        ]

    monkeypatch.setattr(SampleEncoder, "measure", with_other_counts)
    after = open_indexes(make_config(f"data.index_dir={tmp_path / 'other'}"))
    assert [index.content_hash for index in before] == [index.content_hash for index in after]
    assert not any((index.turn_trained == 777).any() for index in before)
    assert all((index.turn_trained == 777).all() for index in after)


def test_lengths_of_another_tokenizer_are_not_used(make_config, tokenizer_folder, tmp_path: Path):
    """The index is built for one; another one has its own, and a run does not go on with it."""
    shutil.copytree(tokenizer_folder, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"].pop()
    file.write_text(json.dumps(content))
    first = make_config()
    second = make_config(f"model.tokenizer={tmp_path / 'other'}")
    built: list[str] = []
    before = open_indexes(first)
    after = open_indexes(second, show=lambda progress: built.append(progress.source))
    assert set(built) == {"pairs", "single", "text"}
    assert before[0].template["tokenizer"] != after[0].template["tokenizer"]
    saved = data_fingerprint(first, before)
    with pytest.raises(DataError, match="the tokenizer is another one"):
        check_same(data_fingerprint(second, after), saved)


def test_an_interrupted_build_goes_on_where_it_was(make_config, tmp_path: Path):
    """Killed without warning; and one of the shards is then changed."""
    folder = tmp_path / "data" / "train"
    for number in range(12):
        samples = [make_sample(f"{number}-{i}", "What?", "That.", []) for i in range(20)]
        write_shard(folder / f"{number:02d}.tar", samples)
    config = make_config(f"data.root={tmp_path / 'data'}", f"data.index_dir={tmp_path / 'index'}")
    save_config(config, tmp_path / "config.yaml")
    code = (
        "import os, signal, sys\n"
        "from nvlm.config import load_config\n"
        "from nvlm.data.index.source_index import open_indexes\n"
        "def show(progress):\n"
        "    if progress.num_shards_done == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"  # one process: all at once
        "open_indexes(load_config(sys.argv[1]), show=show)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "config.yaml"], timeout=120)
    assert done.returncode == -signal.SIGKILL

    def written() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("index/*/parts/*.parquet")}

    parts = written()
    assert len(parts) == 5
    read: list[int] = []
    (index,) = open_indexes(config, show=lambda progress: read.append(progress.num_shards))
    assert read == [7] * 7
    assert len(index) == 240
    assert parts.items() <= written().items()
    # The same as one built without interruption.
    again = make_config(f"data.root={tmp_path / 'data'}", f"data.index_dir={tmp_path / 'other'}")
    assert open_indexes(again)[0].content_hash == index.content_hash


def test_an_index_that_cannot_be_written_or_read_says_so(make_config, tmp_path: Path, capsys):
    index = tmp_path / "index"
    config = make_config(f"data.index_dir={index}", "data.blend={single: 1}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))  # as on a full disk
    try:
        with pytest.raises(
            DataError, match=r"single-\w+: the index cannot be written: .*too large"
        ):
            open_indexes(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(open_indexes(config)[0]) == 40  # the same command goes on
    (metadata,) = index.glob("*/index.json")
    metadata.unlink()
    part = min(index.glob("*/parts/*.parquet"))
    part.write_bytes(part.read_bytes()[:-9])
    assert len(open_indexes(config)[0]) == 40  # a part that is damaged is rebuilt, and said
    assert f"{part.name}: is damaged and is rebuilt" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_number_of_shards(make_config, tmp_path: Path):
    """Neither while building, nor by opening: columns stay in their files."""
    samples = [make_sample(f"k{i}", "What is it? " * 20, "That. " * 50, []) for i in range(60)]
    shard = write_shard(tmp_path / "shard.tar", samples)
    peaks, kept = [], []
    for num_shards in (3, 15):
        folder = tmp_path / str(num_shards) / "train"
        folder.mkdir(parents=True)
        for number in range(num_shards):
            os.link(shard, folder / f"{number:03d}.tar")
        config = make_config(
            f"data.root={folder.parent}", f"data.index_dir={tmp_path / 'index'}", "data.blend=null"
        )
        encoder = SampleEncoder.from_config(config)
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})  # in this process
        tracemalloc.start()
        try:
            (index,) = open_indexes(config, encoder)
            peak = tracemalloc.get_traced_memory()[1]
            gc.collect()
            kept_now = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            os.sched_setaffinity(0, cores)
        assert len(index) == 60 * num_shards
        peaks.append(peak)
        kept.append(kept_now)
    assert peaks[1] < 1.1 * peaks[0]
    # Five times the samples; what is kept per shard is its name.
    assert kept[1] - kept[0] < 12 * 4096


def test_a_samples_fault_is_no_fault_of_its_neighbours(make_config, tmp_path: Path):
    """A content hash says which samples there are: shards that lose one give another."""
    samples = [make_sample(f"{i}", "What?", "That.", []) for i in range(4)]
    hashes = set()
    for name, chosen in (("a", samples), ("b", samples[:3]), ("c", samples)):
        write_shard(tmp_path / name / "train" / "x.tar", chosen)
        config = make_config(f"data.root={tmp_path / name}")
        hashes.add(open_indexes(config)[0].content_hash)
    assert len(hashes) == 2


def test_processes_may_build_at_once(make_config, tmp_path: Path):
    config = make_config(f"data.index_dir={tmp_path / 'index'}")
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        built = [pool.submit(open_indexes, config) for _ in range(3)]
        hashes = {tuple(index.content_hash for index in b.result(timeout=60)) for b in built}
    assert len(hashes) == 1
    assert len(list((tmp_path / "index").glob("*/index.json"))) == 3


def test_rejects_are_named_with_their_reason(make_config, tmp_path: Path, capsys):
    image = draw_image(50, 40)
    good = [make_sample(f"good{i}", "What?", "That.", [image]) for i in range(3)]
    bad = {
        "json": {"__key__": "json", "json": b'{"messages": [', "0.png": image},
        "fields": {"__key__": "fields", "json": b"{}"},
        "image_format": make_sample("image_format", "What?", "That.", [b"no image"]),
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
    assert keys(index) == ["good0", "good1", "good2"]
    assert [index.task(row) for row in range(3)] == ["test"] * 3
    rejected = {(r.shard, r.key): r.reason for r in index.rejected}
    assert rejected == {("a.tar", key): key for key in bad} | {("b.tar", ""): "shard"}
    assert all(r.source == "mixed" and r.detail for r in index.rejected)
    assert index.num_rejected == dict.fromkeys(sorted([*bad, "shard"]), 1)
    printed = capsys.readouterr().out
    assert "rejected mixed a.tar json: json: not readable as JSON" in printed
    # From the file as from the building.
    assert open_indexes(config)[0].rejected == index.rejected


def test_folders_to_index_must_be_folders_or_shards(make_config, tmp_path: Path):
    (tmp_path / "run.yaml").write_text("run: {}")
    with pytest.raises(DataError, match=r"run\.yaml: is a file and no \.tar"):
        build_indexes_with_progress(make_config(), [tmp_path / "run.yaml"])
    with pytest.raises(DataError, match="none: no such folder of shards"):
        build_indexes_with_progress(make_config(), [tmp_path / "none"])


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


def test_the_command_indexes_folders_in_place_of_the_runs_sources(
    make_config, shards: Path, tmp_path: Path, capsys
):
    save_config(make_config(f"data.index_dir={tmp_path / 'index'}"), tmp_path / "run.yaml")
    folders = [str(shards / "train" / name) for name in ("pairs", "text")]
    arguments = ["data", "index", str(tmp_path / "run.yaml"), *folders, "data.num_workers=0"]
    app(arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "pairs" in printed and "text" in printed and "single" not in printed
    # A blend of these folders finds what is indexed.
    blend = ", ".join(f"{name}: {{path: {shards / 'train' / name}}}" for name in ("pairs", "text"))
    config = make_config(f"data.index_dir={tmp_path / 'index'}", f"data.blend={{{blend}}}")
    built = []
    assert len(open_indexes(config, show=built.append)) == 2
    assert built == []
    with pytest.raises(ConfigError, match="is not a YAML file; the first argument is a run's"):
        app(["data", "index", *folders], standalone_mode=False)


def test_who_waits_for_a_build_loads_it_without_the_lock(make_config, tmp_path: Path):
    """A thousand readers would otherwise look at all shards of all sources one after the other."""
    config = make_config(f"data.index_dir={tmp_path / 'index'}", "data.blend={text: 1}")
    (built,) = open_indexes(config)
    (folder,) = (tmp_path / "index").iterdir()
    metadata = folder / "index.json"
    whole = metadata.read_bytes()
    metadata.unlink()  # as if its build were not done
    opened: list[SourceIndex] = []
    waiting = threading.Thread(target=lambda: opened.extend(open_indexes(config)), daemon=True)
    with FileLock(folder / "lock"):  # held by who builds, and by whoever comes next
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive() and not metadata.exists()
        write_bytes(metadata, whole)
        waiting.join(20)
        assert not waiting.is_alive()
    assert keys(opened[0]) == keys(built)
