"""Samples on disk: WebDataset tars, read by byte range.

The members of a sample share a key, the name up to the first dot, and stand together. What a member
holds follows from the rest of its name:

    KEY.json            the sample's text, in one of the shapes of kinds.py
    KEY.txt             a caption, where there is no .json that says more
    KEY.jpg             the only image; also png, webp and all others of image_formats.py
    KEY.0.jpg, KEY.1.png, ...  images, in the order in which the text uses them
    KEY.NAME.jpg        the only image, or, as KEY.page1.jpg and KEY.page2.jpg, images in order
    KEY.mp4             a video; also m4v, mov, mkv, webm, avi; read as evenly spaced frames

Other members are counted and left alone, but for those that are images (members.py). In a folder
prepared for Energon its field map decides instead (energon.py). This file imports no torch.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nvlm.data.samples.field_map import FieldMap
from nvlm.data.samples.image_formats import SIGNATURE_BYTES
from nvlm.data.samples.members import (
    TEXT_MEMBERS,
    MemberError,
    check_numbers,
    choose_media,
    split_name,
)
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.regular_files import MAX_IMAGE_BYTES, open_regular_file
from nvlm.data.shards.tar import TarDamageError, read_members
from nvlm.errors import DataError

_MAX_OPEN_SHARDS = 64
# Too many files open, here or on the machine, or no memory: the fault of no sample.
_OF_THIS_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# These may be gone in a minute; an index would leave the shard out forever.
_PASSING = (*_OF_THIS_PROCESS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
# A longer text would never fit a sequence, and takes long to read.
MAX_TEXT_BYTES = 4 << 20


@dataclass(frozen=True)
class ByteRange:
    """Where a tar member's data lies in its shard, in bytes."""

    offset: int
    size: int


# Reads a part of the shard that is at hand.
ReadRange = Callable[[ByteRange], bytes]


@dataclass(frozen=True)
class StoredMedia:
    """What the members of a sample that are no text are."""

    images: list[ByteRange]  # in order
    video: ByteRange | None
    unused: list[str]  # extensions of members that are not read


@dataclass
class StoredSample:
    """The members of one sample, found by their tar headers."""

    key: str
    members: dict[str, ByteRange] = field(default_factory=dict)  # extension -> place
    problem: SampleError | None = None

    def texts(self, field_map: FieldMap | None = None) -> dict[str, ByteRange]:
        """The members with the sample's text.

        Raises:
            SampleError: there is none, members appear twice, or a text is far too long.
        """
        if self.problem is not None:
            raise self.problem
        wanted = TEXT_MEMBERS if field_map is None else field_map.text_members
        found = {name: self.members[name] for name in wanted if name in self.members}
        if not found:
            names = " or ".join(f"{self.key}.{name}" for name in wanted)
            raise SampleError("missing_member", f"no member {names}")
        for name, where in found.items():
            if where.size > MAX_TEXT_BYTES:
                raise SampleError(
                    "text", f"{self.key}.{name} has {where.size:,} bytes, at most "
                    f"{MAX_TEXT_BYTES:,} are read"
                )  # fmt: skip
        return found

    def media(self, read: ReadRange, field_map: FieldMap | None = None) -> StoredMedia:
        """The images in order, or the video, and what is neither.

        Args:
            read: bytes of the shard; of samples whose members' names say no image.

        Raises:
            SampleError: images are misnumbered or not read, two claim one place, or a video is
                not alone.
        """
        if field_map is not None:
            names = [name for name in field_map.image_members if name in self.members]
            if len(names) > 1:
                raise SampleError("duplicate_key", "image 0 appears twice")
            used = {*names, *field_map.text_members}
            unused = [name for name in self.members if name not in used]
            return StoredMedia([self.members[name] for name in names], None, unused)

        def read_start(name: str) -> bytes:
            where = self.members[name]
            return read(ByteRange(where.offset, min(where.size, SIGNATURE_BYTES)))

        try:
            media = choose_media(self.members, read_start)
            check_numbers(media.images)
        except MemberError as error:
            raise SampleError(error.reason, str(error)) from None
        images = [self.members[name] for name in media.images]
        for name, where in zip(media.images, images, strict=True):
            if where.size > MAX_IMAGE_BYTES:
                raise SampleError(
                    "image",
                    f".{name} has {where.size:,} bytes, at most {MAX_IMAGE_BYTES:,} are read",
                )
        return StoredMedia(
            images,
            None if media.video is None else self.members[media.video],
            media.unused,
        )


def scan_shard(path: Path) -> tuple[list[StoredSample], SampleError | None]:
    """The samples of one shard, from its tar headers, and what ended the reading early, if any.

    A damaged tar gives the samples before the damage, and an error that says where that is. Of a
    sample with a member that is cut off, it is the problem; one before a damaged header may lack
    members.
    """
    samples: list[StoredSample] = []
    seen: set[str] = set()
    try:
        for name, offset, size in read_members(path):
            parts = split_name(name)
            if parts is None:
                if not _is_hidden(name):
                    problem = SampleError("missing_member", "a name without key and extension")
                    samples.append(StoredSample(name, problem=problem))
                continue
            key, extension = parts
            if not samples or samples[-1].key != key:
                samples.append(StoredSample(key))
                samples[-1].problem = _key_problem(key, seen)
                seen.add(key)
            sample = samples[-1]
            if extension in sample.members:
                sample.problem = SampleError("duplicate_key", f"{_shown(name)} appears twice")
            sample.members[extension] = ByteRange(offset, size)
    except TarDamageError as error:
        damage = SampleError("shard", _shown(str(error)))
        parts = split_name(error.member or "")
        if parts is not None and samples and samples[-1].key == parts[0]:
            samples[-1].problem = damage  # it would be used without that member
        return samples, damage
    except OSError as error:
        if error.errno in _PASSING:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        return samples, SampleError("shard", _shown(str(error)))
    return samples, None


def _key_problem(key: str, seen: set[str]) -> SampleError | None:
    try:
        key.encode()
    except UnicodeEncodeError:
        return SampleError("key", f"the name {_shown(key)} is not UTF-8")
    if key in seen:
        return SampleError("duplicate_key", f"key {key} appears twice in the shard")
    return None


def _is_hidden(name: str) -> bool:
    """Whether systems and programs keep a file for themselves, such as `__MACOSX/._a.jpg`."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith(".")


def _shown(name: str) -> str:
    """Printable, whatever bytes a member's name has."""
    return name.encode("utf-8", "backslashreplace").decode()


class ShardReader:
    """Reads byte ranges of shards; keeps the last few shards open. One per process."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: str, where: ByteRange) -> bytes:
        """Raises `SampleError` when the shard is gone or shorter than when it was indexed."""
        try:
            data = os.pread(self._descriptor(shard), where.size, where.offset)
        except OSError as error:
            if error.errno in _OF_THIS_PROCESS:
                raise  # not the sample's fault: it is not to be skipped
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
        self._files[shard] = open_regular_file(shard)
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
