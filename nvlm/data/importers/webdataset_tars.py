"""WebDataset tars made by others, also compressed ones; a unit is one tar.

`KEY.json`, or `KEY.txt` with a caption, gives the text; members with an image's extension are the
sample's images, in natural order of their names; one with a video's is its video. Tars that already
follow our rules need no import: they are read in place.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nvlm.data.energon import FieldMap
from nvlm.data.image_formats import IMAGE_TYPES
from nvlm.data.importers.formats import ImportOptions
from nvlm.data.importers.members import fields_of_members
from nvlm.data.importers.records import (
    Keys,
    Picture,
    Record,
    Reject,
    make_record,
)
from nvlm.data.importers.source_files import find_source_files
from nvlm.data.sample import TEXT_MEMBERS, VIDEO_TYPES, SampleError
from nvlm.data.tar import TarDamageError, read_members
from nvlm.errors import DataError

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# As webdataset cuts names: the folder belongs to the key, the extension starts at the first dot.
_MEMBER_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_DIGITS = re.compile(r"(\d+)")


class TarReader:
    num_samples: int | None = None

    def __init__(
        self,
        shards: list[Path],
        field_map: FieldMap | None,
        left_out: set[str],
        notes: list[str],
    ):
        """
        Args:
            left_out: `SHARD/KEY` of samples that are not wanted.
        """
        self.files = shards
        self.notes = notes
        self._field_map = field_map
        self._left_out = left_out
        self.num_units = len(shards)

    def read(self, unit: int) -> Iterator[Record | Reject]:
        shard = self.files[unit]
        seen: set[str] = set()
        keys = Keys()
        # Keys often begin anew in each tar.
        prefix = "" if self.num_units == 1 else f"{unit:06d}/"
        try:
            for key, members in _samples(shard):
                if f"{shard.name}/{key}" in self._left_out:
                    continue
                try:
                    if key in seen:
                        raise SampleError("duplicate", f"key {key} stands twice in the shard")
                    seen.add(key)
                    yield self._record(prefix + keys.make(key, 0, key), members)
                except SampleError as error:
                    yield Reject.of(f"{shard.name}/{key}", error)
        except (TarDamageError, tarfile.TarError, EOFError, OSError, zlib.error) as error:
            yield Reject.of(shard.name, SampleError("shard", str(error)))

    def _record(self, key: str, members: dict[str, bytes]) -> Record:
        wanted = TEXT_MEMBERS if self._field_map is None else self._field_map.text_members
        texts = {name: members[name] for name in wanted if name in members}
        if not texts:
            raise SampleError("missing_member", f"no member {' or '.join(wanted)}")
        fields, unused = fields_of_members(texts, self._field_map)
        video = None
        if self._field_map is None:
            names = [name for name in members if name.rpartition(".")[2] in IMAGE_TYPES]
            names.sort(key=_natural)
            videos = [name for name in members if name.rpartition(".")[2] in VIDEO_TYPES]
            if len(videos) > 1 or (videos and names):
                raise SampleError(
                    "video", "several videos, or images beside one; expected one alone"
                )
            if videos:
                video = Picture(members[videos[0]], Path(f"x.{videos[0]}"))
        else:
            names = [name for name in self._field_map.image_members if name in members][:1]
        record = make_record(key, fields, [Picture(members[name]) for name in names], video)
        return replace(record, unused=(*record.unused, *unused))


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, content by extension) of neighbouring members with one key."""
    key: str | None = None
    members: dict[str, bytes] = {}
    for name, data in _plain(shard) if shard.suffix == ".tar" else _compressed(shard):
        match = _MEMBER_NAME.fullmatch(name)
        if match is None:
            continue
        if match[1] != key:
            if key is not None:
                yield key, members
            key, members = match[1], {}
        members[match[2].lower()] = data
    if key is not None:
        yield key, members


def _plain(shard: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file. Sees where a tar is cut, which Python's reader may not."""
    with shard.open("rb") as file:
        for name, offset, size in read_members(shard):
            file.seek(offset)
            yield name, file.read(size)


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


def _compressed(shard: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(shard, "r|*", tarinfo=_CheckedHeader) as tar:
        for member in tar:
            if member.isfile() and (file := tar.extractfile(member)) is not None:
                yield member.name, file.read()


def _natural(name: str) -> list[tuple[int, str]]:
    """`2.jpg` before `10.jpg`: numbers by their length, then by their digits."""
    parts = [part.lstrip("0") if part.isdecimal() else part for part in _DIGITS.split(name)]
    return [(len(part), part) if part.isdecimal() else (-1, part) for part in parts]


def open_source(options: ImportOptions) -> TarReader:
    if (options.source / ".nv-meta").is_dir():
        raise DataError(f"{options.source} is prepared for Energon: use --format energon")
    shards, notes = find_source_files(options, ENDINGS, "tar files")
    return TarReader(shards, None, set(), notes)
