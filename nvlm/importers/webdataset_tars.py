"""WebDataset tars made by others, also compressed ones; a unit is one tar.

`KEY.json`, or `KEY.txt` with a caption, gives the text; which members are the images or the video,
members.py says. Tars that already follow our rules need no import: they are read in place.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO

from nvlm.data.samples.field_map import FieldMap
from nvlm.data.samples.image_formats import IMAGE_TYPES, SIGNATURE_BYTES, has_image_signature
from nvlm.data.samples.members import (
    TEXT_MEMBERS,
    VIDEO_TYPES,
    MemberError,
    choose_media,
    split_name,
    type_of,
)
from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import printable
from nvlm.data.shards.regular_files import MAX_IMAGE_BYTES, MAX_VIDEO_BYTES, open_regular_file
from nvlm.data.shards.shard import MAX_TEXT_BYTES
from nvlm.data.shards.tar import TarDamageError, read_members
from nvlm.errors import DataError
from nvlm.importers.formats import ImportOptions
from nvlm.importers.members import fields_of_members
from nvlm.importers.records import Keys, Picture, Record, Reject, make_record
from nvlm.importers.source_files import find_source_files, is_hidden

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_WANTED = IMAGE_TYPES | VIDEO_TYPES | set(TEXT_MEMBERS)


class TarReader:
    num_samples: int | None = None

    def __init__(
        self,
        shards: list[Path],
        field_map: FieldMap | None,
        excluded: set[str],
        notes: list[str],
    ):
        """
        Args:
            excluded: `SHARD/KEY` of samples that are not wanted.
        """
        self.files = shards
        self.notes = notes
        self._field_map = field_map
        self._excluded = excluded
        self.num_units = len(shards)

    def read(self, unit: int) -> Iterator[Record | Reject]:
        shard = self.files[unit]
        seen: set[str] = set()
        keys = Keys()
        # Keys often start over in each tar.
        prefix = "" if self.num_units == 1 else f"{unit:06d}/"
        try:
            with os.fdopen(open_regular_file(shard), "rb") as file:
                plain = shard.suffix.lower() == ".tar"
                found = _samples(_plain(file, shard) if plain else _compressed(file))
                for key, members, problem in found:
                    if f"{shard.name}/{key}" in self._excluded:
                        continue
                    try:
                        if key in seen:
                            raise SampleError("duplicate", f"key {key} appears twice in the shard")
                        seen.add(key)
                        if problem is not None:
                            raise problem
                        yield self._record(prefix + keys.make(key, 0, key), members)
                    except SampleError as error:
                        yield Reject.of(f"{shard.name}/{key}", error)
        except (TarDamageError, tarfile.TarError, EOFError, OSError, zlib.error) as error:
            yield Reject.of(shard.name, SampleError("shard", str(error)))

    def _record(self, key: str, members: dict[str, _Member]) -> Record:
        field_map = self._field_map
        wanted = TEXT_MEMBERS if field_map is None else field_map.text_members
        texts = {name: members[name].read(MAX_TEXT_BYTES) for name in wanted if name in members}
        if not texts:
            raise SampleError("missing_member", f"no member {' or '.join(wanted)}")
        for name in texts:
            _check_size(name, members[name], MAX_TEXT_BYTES, "text")
        fields, unused = fields_of_members(texts, field_map)
        video = None
        if field_map is None:
            try:
                media = choose_media(members, lambda name: members[name].read(SIGNATURE_BYTES))
            except MemberError as error:
                raise SampleError(error.reason, str(error)) from None
            images, others = media.images, media.unused
            if media.video is not None:
                member = members[media.video]
                _check_size(media.video, member, MAX_VIDEO_BYTES, "video")
                kind = type_of(media.video)
                video = Picture(member.read(MAX_VIDEO_BYTES), Path(f"x.{kind}"))
        else:
            images = [name for name in field_map.image_members if name in members][:1]
            others = [name for name in members if name not in {*images, *wanted}]
        for name in images:
            _check_size(name, members[name], MAX_IMAGE_BYTES, "image")
        pictures = [Picture(members[name].read(MAX_IMAGE_BYTES)) for name in images]
        record = make_record(key, fields, pictures, video)
        unused += [f"member .{name}" for name in others]
        return replace(record, unused=(*record.unused, *unused))


@dataclass(frozen=True)
class _Member:
    size: int  # bytes
    read: Callable[[int], bytes]  # at most so many of its first bytes


def _check_size(name: str, member: _Member, max_bytes: int, reason: str) -> None:
    if member.size > max_bytes:
        raise SampleError(
            reason, f".{name} has {member.size:,} bytes, at most {max_bytes:,} are read"
        )


def _samples(
    found: Iterator[tuple[str, _Member]],
) -> Iterator[tuple[str, dict[str, _Member], SampleError | None]]:
    """(key, members by extension, what is wrong with them) of neighbouring members of one key."""
    key: str | None = None
    members: dict[str, _Member] = {}
    problem: SampleError | None = None
    for name, member in found:
        parts = split_name(name)
        if parts is None:
            if not is_hidden(PurePath(name)):
                wrong = SampleError("missing_member", "a name without key and extension")
                yield name, {}, wrong
            continue
        new_key, extension = parts
        if new_key != key:
            if key is not None:
                yield key, members, problem
            key, members, problem = new_key, {}, None
        if extension in members:
            problem = SampleError("duplicate", f"member {printable(name)} appears twice")
        members[extension] = member
    if key is not None:
        yield key, members, problem


def _plain(file: BinaryIO, shard: Path) -> Iterator[tuple[str, _Member]]:
    """Each file, read when it is wanted. Sees where a tar is cut, which Python's reader may not."""

    def read(offset: int, size: int, limit: int) -> bytes:
        file.seek(offset)
        return file.read(min(size, limit))

    for name, offset, size in read_members(shard):
        yield name, _Member(size, partial(read, offset, size))


class _CheckedHeader(tarfile.TarInfo):
    """A header. A damaged or missing one is an error; Python's reader takes it for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}; the rest is lost") from None


def _compressed(raw: BinaryIO) -> Iterator[tuple[str, _Member]]:
    """Each file, in memory if it may be wanted: a stream is read but once."""
    with tarfile.open(fileobj=raw, mode="r|*", tarinfo=_CheckedHeader) as tar:
        for member in tar:
            if not member.isfile() or (file := tar.extractfile(member)) is None:
                continue
            content = file.read(SIGNATURE_BYTES)
            kind = type_of(member.name).lower()
            limit = MAX_VIDEO_BYTES if kind in VIDEO_TYPES else MAX_IMAGE_BYTES
            if (kind in _WANTED or has_image_signature(content)) and member.size <= limit:
                content += file.read()
            yield member.name, _Member(member.size, partial(_first, content))


def _first(content: bytes, limit: int) -> bytes:
    return content[:limit]


def open_source(options: ImportOptions) -> TarReader:
    if (options.source / ".nv-meta").is_dir():
        raise DataError(f"{options.source} is prepared for Energon: use --format energon")
    shards, notes = find_source_files(options, ENDINGS, "tar files")
    return TarReader(shards, None, set(), notes)
