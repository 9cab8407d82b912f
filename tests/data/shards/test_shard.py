"""Samples on disk: every kind of damage is found and named, and costs no more than it must."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from helpers.shard_reading import iterate_samples
from helpers.shard_writing import as_json, draw_image, make_sample, write_shard

from nvlm.config import RunConfig
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import ByteRange, ShardReader, StoredMedia, StoredSample, scan_shard
from nvlm.data.shards.sources import find_sources
from nvlm.errors import DataError

USER, ANSWER = ("user", "What?"), ("assistant", "That.")


def names_alone(sample: StoredSample) -> StoredMedia:
    return sample.media(lambda where: b"")


def test_members_of_a_shard(tmp_path: Path):
    image = draw_image(20, 10)
    shard = write_shard(
        tmp_path / "a.tar",
        [
            make_sample("one", "What?", "That.", [image, image]),
            {"__key__": "folder/two", "json": as_json(USER, ANSWER), "cls": b"7"},
            {"__key__": "three", "jpg": image, "json": as_json(("user", "<image>"), ANSWER)},
        ],
    )
    samples, damage = scan_shard(shard)
    assert damage is None
    assert [(s.key, len(names_alone(s).images)) for s in samples] == [
        ("one", 2),
        ("folder/two", 0),
        ("three", 1),
    ]
    with ShardReader() as reader:
        assert reader.read(str(shard), names_alone(samples[0]).images[1]) == image
        assert reader.read(str(shard), samples[1].texts()["json"]) == as_json(USER, ANSWER)
        other = pickle.loads(pickle.dumps(reader))
        assert other.read(str(shard), names_alone(samples[2]).images[0]) == image


def test_ten_images_stand_in_numeric_order(tmp_path: Path):
    images = [draw_image(10 + i, 10) for i in range(11)]
    shard = write_shard(tmp_path / "a.tar", [make_sample("one", "What?", "That.", images)])
    ((_, _, read),) = iterate_samples([shard])
    assert read == images


def test_missing_and_doubled_members(tmp_path: Path):
    good = as_json(USER, ANSWER)
    shard = write_shard(
        tmp_path / "a.tar",
        [
            {"__key__": "nojson", "png": b"x"},
            {"__key__": "gap", "json": good, "0.png": b"x", "2.png": b"x"},
            {"__key__": "double", "json": good, "png": b"x", "0.jpg": b"x"},
            {"__key__": "twice", "json": good},
            {"__key__": "good", "json": good},
            {"__key__": "twice", "json": good},
        ],
    )
    samples, damage = scan_shard(shard)
    assert damage is None
    found = {}
    for sample in samples:
        try:
            sample.texts()
            names_alone(sample)
        except SampleError as error:
            found[sample.key] = error.reason
    assert found == {
        "nojson": "missing_member",
        "gap": "missing_member",
        "double": "duplicate_key",
        "twice": "duplicate_key",
    }


def make_tar(num_samples: int) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for number in range(num_samples):
            info = tarfile.TarInfo(f"k{number}.json")
            info.size = 600
            tar.addfile(info, io.BytesIO(b" " * 600))
    return raw.getvalue()


# Each member takes 512 bytes of header and 1024 of data.
@pytest.mark.parametrize(
    ("damage", "num_whole", "detail"),
    [
        ("empty file", 0, "not readable as a tar"),
        ("no tar", 0, "not readable as a tar"),
        ("cut in data", 2, "cut off"),
        ("cut in header", 2, "rest is lost"),
        ("cut between", 2, "without an end mark"),
        ("broken header", 2, "unreadable header at byte 3072"),
    ],
)
def test_damaged_tars_keep_what_is_before_the_damage(
    tmp_path: Path, damage: str, num_whole: int, detail: str
):
    whole = make_tar(4)
    shard = tmp_path / "a.tar"
    shard.write_bytes(
        {
            "empty file": b"",
            "no tar": b"not a tar at all " * 100,
            "cut in data": whole[: 3072 + 512 + 100],
            "cut in header": whole[: 3072 + 100],
            "cut between": whole[:3072],
            "broken header": whole[:3072] + b"\x07" * 512 + whole[3584:],
        }[damage]
    )
    samples, error = scan_shard(shard)
    assert error is not None
    assert error.reason == "shard"
    assert detail in str(error)
    complete = [s for s in samples if "json" in s.members]
    assert [s.key for s in complete] == [f"k{i}" for i in range(num_whole)]


def test_empty_archive_is_no_damage(tmp_path: Path):
    shard = tmp_path / "a.tar"
    shard.write_bytes(make_tar(0))
    assert scan_shard(shard) == ([], None)


def test_reading_a_shard_that_changed(tmp_path: Path):
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"x" * 100)
    with ShardReader() as reader, pytest.raises(SampleError, match="50 of 60 bytes"):
        reader.read(str(shard), ByteRange(50, 60))
    with ShardReader() as reader, pytest.raises(SampleError, match="No such file") as caught:
        reader.read(str(tmp_path / "gone.tar"), ByteRange(0, 1))
    assert caught.value.reason == "read"


def test_sources_are_folders_of_shards(make_config, shards: Path):
    sources = find_sources(make_config())
    assert {name: len(source.shards) for name, source in sources.items()} == {
        "pairs": 1, "single": 2, "text": 1,
    }  # fmt: skip
    assert list(find_sources(make_config("data.blend={text: 1, pairs: 2}"))) == ["pairs", "text"]
    direct = make_config(f"data.root={shards / 'train'}", "data.split=single")
    assert [path.name for path in find_sources(direct)["single"].shards] == [
        "single-000000.tar", "single-000001.tar",
    ]  # fmt: skip


def test_no_shards_says_how_to_make_some(make_config, tmp_path: Path):
    config: RunConfig = make_config(f"data.root={tmp_path}")
    with pytest.raises(DataError, match=r"no \.tar files under .*train.*nvlm data build-demo"):
        find_sources(config)
    (tmp_path / "train" / "digits").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no \.tar files"):
        find_sources(config)


def test_blend_names_must_exist(make_config):
    with pytest.raises(DataError, match=r"no source 'txt'.*which has pairs, single, text"):
        find_sources(make_config("data.blend={txt: 1}"))


def test_looking_for_shards_imports_no_torch():
    code = "import sys, nvlm.data.samples.sample; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
