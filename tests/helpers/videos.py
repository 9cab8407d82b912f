"""Videos whose frames tell their number, and a source of them."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np

from helpers.shard_writing import as_json, write_shard

KINDS = {
    "mp4": "mpeg4",
    "mov": "libx264",
    "matroska": "libx264",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
}


def make_video(
    num_frames: int, kind: str = "mp4", codec: str = "", size=(64, 48), **options
) -> bytes:
    """Frame n is gray of brightness 40 + 7 n, its left upper quarter white."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec or KINDS[kind], rate=10, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 7
        stream.bit_rate = 4_000_000
        for number in range(num_frames):
            pixels = np.full((size[1], size[0], 3), 40 + 7 * number, np.uint8)
            pixels[: size[1] // 2, : size[0] // 2] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


def write_source(root: Path, num_samples: int) -> None:
    """Videos of 3 and of 20 frames, with and without a mark, and some images."""
    samples = []
    for number in range(num_samples):
        question = ["<video>\nWhat happens?", "First <video> then?"][number % 2]
        text = as_json(("user", question), ("assistant", "It gets brighter."))
        video = make_video([3, 20][number % 2])
        samples.append({"__key__": f"v{number}", "json": text, "mp4": video})
    samples.append({"__key__": "cut", "json": text, "mp4": video[: len(video) // 3]})
    write_shard(root / "train" / "clips" / "clips-000000.tar", samples)
