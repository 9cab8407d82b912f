"""An index that is not what was written is rebuilt, and reported; many sources need few files."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.loading import build_loader
from helpers.shard_writing import draw_image, make_sample, write_shard

from nvlm.data.index.source_index import open_indexes
from nvlm.data.shards.shard import ByteRange, ShardReader, scan_shard
from nvlm.errors import DataError
from nvlm.failures import explain


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-70])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def flip_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1] ^= 4
    path.write_bytes(content)


def gone(path: Path) -> None:
    path.unlink()


def another_json(path: Path) -> None:
    path.write_text('[{"settings": 1}]')


@pytest.mark.parametrize(
    "name, damage",
    [("columns-*/columns.bin", d) for d in (cut, empty, garbage, flip_one_byte, gone)]
    + [("index.json", damage) for damage in (cut, empty, garbage, another_json)]
    + [("columns-*/rejected.jsonl", damage) for damage in (cut, gone)],
)
def test_damage_is_said_and_built_anew(
    name: str,
    damage: Callable[[Path], None],
    make_config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "data" / "train" / "s").mkdir(parents=True)
    samples = [make_sample(f"k{i}", "Hi?", "Ho.", []) for i in range(3)]
    samples.append({"__key__": "no-text", "png": draw_image(30, 30)})
    write_shard(tmp_path / "data" / "train" / "s" / "0.tar", samples)
    own = [f"data.root={tmp_path / 'data'}", f"data.index_dir={tmp_path / 'index'}"]
    config = make_config(*own, "data.blend=null")
    (before,) = open_indexes(config)
    (path,) = (tmp_path / "index").glob(f"*/{name}")
    damage(path)
    capsys.readouterr()
    (after,) = open_indexes(config)
    assert after.content_hash == before.content_hash
    assert [after.key(row) for row in range(3)] == ["k0", "k1", "k2"]
    assert [sample.key for sample in after.rejected] == ["no-text"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the index is damaged and is rebuilt" in said
    assert str(path.parent if name == "index.json" else path.parents[1]) in said
    open_indexes(config)
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def many_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many")
    for number in range(97):
        sample = make_sample(f"k{number}", "What?", "That.", [draw_image(100, 90, number)])
        write_shard(root / "train" / f"source{number:02d}" / "0.tar", [sample])
    return root


def test_97_sources_need_few_files(many_sources: Path, make_config, tmp_path: Path):
    """Under a limit on open files that leaves a little more than one for each, several epochs."""
    config = make_config(
        f"data.root={many_sources}",
        f"data.index_dir={tmp_path / 'index'}",
        "data.blend=null",
        "data.num_workers=2",
        "train.global_batch_size=16",
        "stage.packing=false",
    )
    num_open = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(highest, num_open + 97) + 90, limits[1]))
    try:
        indexes = open_indexes(config)
        assert len(os.listdir("/proc/self/fd")) - num_open <= 97
        loader = iter(build_loader(config, indexes, 0, 1))
        steps = list(itertools.islice(loader, 19))  # 304 sequences: three epochs and more
        loader.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    keys = [key for step in steps for batch in step.micro_batches for key in batch.sample_keys]
    assert len(set(keys)) == 97
    assert not any(step.skipped for step in steps)


def test_a_killed_worker_is_named_within_seconds(make_config):
    config = make_config("data.num_workers=1")
    loader = iter(build_loader(config, open_indexes(config), 0, 1))
    next(loader)
    error: Exception | None = None
    try:
        for worker in multiprocessing.active_children():
            worker.kill()
        for _ in range(1000):
            next(loader)
    except (DataError, RuntimeError) as raised:  # torch's handler may say it first, in this thread
        error = raised
    assert error is not None
    message = explain(error)
    assert message is not None
    assert "fewer data.num_workers" in message


def test_what_a_worker_raises_arrives_as_one_line(make_config, monkeypatch: pytest.MonkeyPatch):
    def read(self, request):
        raise DataError(f"{request.shard}: the shard changed")

    monkeypatch.setattr("nvlm.data.loading.reader.MicroBatchReader.read_sample", read)
    config = make_config("data.num_workers=1")
    with pytest.raises(DataError, match=r"^\S+\.tar: the shard changed$"):
        next(iter(build_loader(config, open_indexes(config), 0, 1)))


def test_too_many_open_files_lose_no_sample(shards: Path):
    """Neither is a shard left out of the index, nor a sample skipped."""
    (shard,) = shards.glob("train/text/*.tar")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(DataError, match="Too many open files"):
            scan_shard(shard)
        with pytest.raises(OSError, match="Too many open files") as raised:
            ShardReader().read(str(shard), ByteRange(0, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not isinstance(raised.value, DataError)
