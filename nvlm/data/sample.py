"""Samples on disk: WebDataset tars, read by byte range.

`ROOT/SPLIT/SOURCE/*.tar` is one source per folder; `ROOT/SPLIT/*.tar` is one source named after
the split. The members of a sample share a key (the name up to the first dot): `KEY.json` with
`{"messages": [{"role": ..., "content": ...}], "task": ...}` and the images `KEY.0.png`,
`KEY.1.jpg`, ... in the order in which the marks `<image>` of the user turns use them (`KEY.png` if
there is only one). This file imports no torch.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvlm.config import RunConfig
from nvlm.errors import DataError

IMAGE_MARK = "<image>"
IMAGE_TYPES = {"png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"}
ROLES = ("system", "user", "assistant")
# A conversation: `{"role": "system" | "user" | "assistant", "content": text}` per turn.
Messages = list[dict[str, str]]

# As webdataset cuts names: the folder belongs to the key, the extension starts at the first dot.
_MEMBER_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_TAR_BLOCK = 512
_MAX_OPEN_SHARDS = 64


class SampleError(DataError):
    """One sample cannot be used; training goes on without it.

    `reason` is a short word to count by; the message is the detail.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class ByteRange:
    """Where a tar member's data lies in its shard, in bytes."""

    offset: int
    size: int


@dataclass
class StoredSample:
    """The members of one sample, found by their tar headers."""

    key: str
    json: ByteRange | None = None
    images: dict[int, ByteRange] = field(default_factory=dict)
    problem: SampleError | None = None

    def check_complete(self) -> None:
        """Raise `SampleError` when members are missing, doubled or misnumbered."""
        if self.problem is not None:
            raise self.problem
        if self.json is None:
            raise SampleError("missing_member", f"no member {self.key}.json")
        if sorted(self.images) != list(range(len(self.images))):
            raise SampleError(
                "missing_member",
                f"images are numbered {sorted(self.images)}, expected 0 to {len(self.images) - 1}",
            )


def find_sources(config: RunConfig) -> dict[str, list[Path]]:
    """Source name -> its shards in order, for the sources that `data.blend` uses.

    Raises:
        DataError: there are no shards, or the blend names a source that has none.
    """
    root = Path(config.data.root)
    folder = root / config.data.split
    sources: dict[str, list[Path]] = {}
    if folder.is_dir():
        if own := sorted(folder.glob("*.tar")):
            sources[config.data.split] = own
        for child in sorted(path for path in folder.iterdir() if path.is_dir()):
            if shards := sorted(child.glob("*.tar")):
                sources[child.name] = shards
    if not sources:
        raise DataError(
            f"data.root {root}: no .tar files under {folder} (expected {folder}/SOURCE/*.tar); "
            f"`nvlm data build-demo {root}` makes some"
        )
    if config.data.blend is None:
        return sources
    for name in config.data.blend:
        if name not in sources:
            raise DataError(
                f"data.blend: no source {name!r} under {folder}, which has {', '.join(sources)}"
            )
    return {name: sources[name] for name in sorted(config.data.blend)}


def check_shards(config: RunConfig) -> None:
    """Raise `DataError` when the run has no shards to read. Looks at folders only."""
    find_sources(config)


def scan_shard(path: Path) -> tuple[list[StoredSample], SampleError | None]:
    """The samples of one shard, from its tar headers, and what ended the reading early, if any.

    A damaged tar gives the samples before the damage, the last of them perhaps without all of its
    members, and an error that says where the damage is.
    """
    samples: list[StoredSample] = []
    seen: set[str] = set()
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = _MEMBER_NAME.fullmatch(member.name)
                if not member.isfile() or match is None:
                    continue
                if member.offset_data + member.size > size:
                    detail = f"member {member.name} is cut off at the end of the file"
                    return samples, SampleError("shard", detail)
                if not samples or samples[-1].key != match[1]:
                    samples.append(StoredSample(match[1]))
                    if match[1] in seen:
                        samples[-1].problem = SampleError(
                            "duplicate_key", f"key {match[1]} stands twice in the shard"
                        )
                    seen.add(match[1])
                _add_member(samples[-1], match[2].lower(), member)
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        return samples, SampleError("shard", f"not readable as a tar: {error}")
    # tarfile takes any unreadable header for the end of the archive. A real end is a zero block.
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_TAR_BLOCK)
    if block != bytes(_TAR_BLOCK):
        what = "ends without an end mark" if not block else "has an unreadable header"
        return samples, SampleError("shard", f"{what} at byte {end}; the rest is lost")
    return samples, None


def _add_member(sample: StoredSample, extension: str, member: tarfile.TarInfo) -> None:
    where = ByteRange(member.offset_data, member.size)
    number, dot, image_type = extension.rpartition(".")
    if extension == "json":
        if sample.json is not None:
            sample.problem = SampleError("duplicate_key", f"{member.name} stands twice")
        sample.json = where
    elif image_type in IMAGE_TYPES and (not dot or number.isdecimal()):
        index = int(number) if dot else 0
        if index in sample.images:
            sample.problem = SampleError("duplicate_key", f"image {index} stands twice")
        sample.images[index] = where


def parse_sample(raw: bytes, num_images: int) -> tuple[Messages, str]:
    """The conversation and the task name of a sample's JSON.

    Raises:
        SampleError: not JSON, of another shape, or with more or fewer image marks than images.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SampleError("json", f"not readable as JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise SampleError("messages", 'the JSON must be {"messages": [...]}')
    messages = [_parse_message(position, item) for position, item in enumerate(value["messages"])]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise SampleError("messages", "no assistant turn, so nothing to train on")
    if "system" in roles[1:]:
        raise SampleError("messages", "a system turn must come first")
    num_marks = count_image_marks(messages)
    if num_marks != num_images:
        raise SampleError(
            "image_count", f"{num_marks} {IMAGE_MARK} marks in user turns for {num_images} images"
        )
    task = value.get("task")
    return messages, task if isinstance(task, str) else ""


def _parse_message(position: int, item: Any) -> dict[str, str]:
    if not isinstance(item, dict):
        raise SampleError("messages", f"message {position} is no object with role and content")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise SampleError("messages", f"message {position}: role {role!r}, expected one of {ROLES}")
    if not isinstance(content, str) or not content.strip():
        raise SampleError("messages", f"message {position} ({role}): content is empty or no text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise SampleError("messages", f"message {position} ({role}): {error}") from None
    if role != "user" and IMAGE_MARK in content:
        raise SampleError(
            "messages", f"message {position} ({role}): {IMAGE_MARK} outside user turns"
        )
    return {"role": role, "content": content}


def count_image_marks(messages: Messages) -> int:
    return sum(m["content"].count(IMAGE_MARK) for m in messages if m["role"] == "user")


class ShardReader:
    """Reads byte ranges of shards; keeps the last few shards open. One per process."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: str, where: ByteRange) -> bytes:
        """Raises `SampleError` when the shard is gone or shorter than when it was indexed."""
        try:
            data = os.pread(self._descriptor(shard), where.size, where.offset)
        except OSError as error:
            raise SampleError("read", str(error)) from None
        if len(data) != where.size:
            raise SampleError(
                "read",
                f"{len(data)} of {where.size} bytes at {where.offset}: the shard was cut short",
            )
        return data

    def _descriptor(self, shard: str) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _MAX_OPEN_SHARDS:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = os.open(shard, os.O_RDONLY)
        return self._files[shard]

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self):
        return ShardReader, ()  # a process opens its own files


def iterate_samples(shards: list[Path]) -> Iterator[tuple[str, Messages, str, list[bytes]]]:
    """(key, messages, task, encoded images) of every whole sample, in shard order.

    For evaluation and previews, where nothing may be skipped in silence.

    Raises:
        DataError: a shard or a sample is broken; the message names it.
    """
    with ShardReader() as reader:
        for shard in shards:
            samples, damage = scan_shard(shard)
            if damage is not None:
                raise DataError(f"{shard}: {damage}")
            for stored in samples:
                try:
                    stored.check_complete()
                    assert stored.json is not None
                    raw = reader.read(str(shard), stored.json)
                    messages, task = parse_sample(raw, len(stored.images))
                    images = [
                        reader.read(str(shard), stored.images[i]) for i in range(len(stored.images))
                    ]
                except SampleError as error:
                    raise DataError(f"{shard}: sample {stored.key}: {error}") from None
                yield stored.key, messages, task, images
