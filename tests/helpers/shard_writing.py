"""Small images and shards for the data tests."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image


def draw_image(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """A small picture with some structure, encoded."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    image.save(encoded, kind)
    return encoded.getvalue()


def as_json(*turns: tuple[str, str], **extra: object) -> bytes:
    messages = [{"role": role, "content": content} for role, content in turns]
    return json.dumps({"messages": messages, **extra}).encode()


def make_sample(key: str, question: str, answer: str, images: list[bytes]) -> dict:
    """A sample as webdataset's writers take it."""
    question = "<image>\n" * len(images) + question
    content = as_json(("user", question), ("assistant", answer), task="test")
    return {"__key__": key, "json": content} | {f"{i}.png": image for i, image in enumerate(images)}


def write_shard(path: Path, samples: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def corrupt_members(shard: Path, suffix: str, count: int) -> list[str]:
    """Overwrite the middle of the first `count` members ending in `suffix`; returns their keys."""
    with tarfile.open(shard) as tar:
        members = [m for m in tar if m.name.endswith(suffix)][:count]
    with shard.open("r+b") as file:
        for member in members:
            file.seek(member.offset_data + member.size // 3)
            file.write(b"\xff\x00" * (member.size // 4))
    assert members
    return [member.name.partition(".")[0] for member in members]
