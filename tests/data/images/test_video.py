"""Frames of videos, made with PyAV on the spot."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.loading import build_loader
from helpers.shard_writing import as_json, write_shard
from helpers.videos import KINDS, make_video, write_source

from nvlm.data.images.video import count_frames, decode_frames
from nvlm.data.index.source_index import open_indexes
from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError


def numbers(frames: list[np.ndarray]) -> list[int]:
    return [round((int(frame[-8, -8].mean()) - 40) / 7) for frame in frames]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("num_frames", "wanted", "expected"),
    [
        (30, 4, [0, 10, 19, 29]),
        (30, 1, [0]),
        (30, 30, list(range(30))),
        (3, 8, [0, 1, 2]),
        (1, 8, [0]),
    ],
)
def test_frames_are_evenly_spaced(kind: str, num_frames: int, wanted: int, expected: list[int]):
    data = make_video(num_frames, kind)
    count = count_frames(data, wanted)
    assert count == len(expected)
    frames = decode_frames(data, count)
    assert numbers(frames) == expected
    assert all(f.shape == (48, 64, 3) and f.dtype == np.uint8 for f in frames)
    assert all(f.flags.c_contiguous for f in frames)


def test_frames_that_are_stored_out_of_order():
    data = make_video(25, "mp4", "libx264", bf="3")
    assert numbers(decode_frames(data, 5)) == [0, 6, 12, 18, 24]


@pytest.mark.parametrize(
    ("turns", "corner"), [(0, (0, 0)), (1, (0, -1)), (2, (-1, -1)), (3, (-1, 0))]
)
def test_rotation_is_applied(turns: int, corner: tuple[int, int]):
    """Quarter turns clockwise, in the track's matrix, as telephones store them."""
    data = make_video(3)
    matrix = [0] * 9
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    matrix[0], matrix[1], matrix[3], matrix[4], matrix[8] = cosine, sine, -sine, cosine, 0x4000
    at = data.index(b"tkhd") + 4 + 40
    packed = b"".join((value * 0x10000).to_bytes(4, signed=True) for value in matrix)
    data = data[:at] + packed + data[at + 36 :]
    (frame,) = decode_frames(data, 1)
    assert frame.shape == ((48, 64, 3) if turns % 2 == 0 else (64, 48, 3))
    y, x = (8 if c == 0 else -8 for c in corner)
    assert frame[y, x].mean() > 200
    assert sum(frame[a, b].mean() > 200 for a in (8, -8) for b in (8, -8)) == 1


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "video", "no MP4"),
        (b"#EXTM3U\nhttp://example.org/1.ts\n", "video", "no MP4"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "video", "no MP4"),
        (make_video(9)[:900], "video", "no video stream|codec is not known"),
        (b"\0\0\0\x18ftypmp42" + bytes(500), "video", "not readable as a video|no video stream"),
    ],
)
def test_what_is_no_video_is_the_samples_fault(data: bytes, reason: str, message: str):
    with pytest.raises(SampleError, match=message) as caught:
        count_frames(data, 8)
    assert caught.value.reason == reason


def test_damaged_videos_never_crash():
    whole = make_video(20, "matroska")
    random = np.random.default_rng(0)
    num_refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(8):
            data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        try:
            frames = decode_frames(bytes(data), 5, max_megapixels=1)
        except SampleError:
            num_refused += 1
        else:
            assert len(frames) == 5
    assert num_refused >= 5


def test_without_pyav_the_message_says_what_to_install(make_config, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    sample = {"__key__": "clip", "json": as_json(("user", "<video>"), ("assistant", "A clip.")),
              "mp4": b"a video"}  # fmt: skip
    write_shard(tmp_path / "data" / "train" / "clips.tar", [sample])
    message = r"clips\.tar: sample clip: videos need the library av: pip install 'nvlm\[video\]'"
    with pytest.raises(DataError, match=message):
        open_indexes(make_config(f"data.root={tmp_path / 'data'}"))


def test_large_frames_are_refused_before_decoding():
    data = make_video(2, size=(320, 240))
    with pytest.raises(SampleError, match=r"over data\.max_image_megapixels 0\.05") as caught:
        count_frames(data, 8, max_megapixels=0.05)
    assert caught.value.reason == "image_too_large"


def test_training_reads_videos_as_so_many_single_tiles(make_config, tmp_path: Path):
    write_source(tmp_path / "data", 6)
    config = make_config(f"data.root={tmp_path / 'data'}", "data.num_video_frames=4")
    (index,) = open_indexes(config)
    assert len(index) == 6
    assert [(r.key, r.reason) for r in index.rejected] == [("cut", "video")]
    step = next(iter(build_loader(config, [index], 0, 1)))
    assert step.skipped == []
    num_tiles = 0
    for batch in step.micro_batches:
        for key in batch.sample_keys:
            num_tiles += 3 if int(key[-1]) % 2 == 0 else 4
    assert num_tiles > 8
    assert sum(batch.num_tiles for batch in step.micro_batches) == num_tiles
