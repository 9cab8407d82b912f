"""What passes between the readers of formats and the writer of shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Protocol

from nvlm.data.images.image import HEADER_BYTES, image_type
from nvlm.data.samples.image_formats import IMAGE_TYPES
from nvlm.data.samples.kinds import SampleParser
from nvlm.data.samples.members import VIDEO_TYPES
from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.data.shards.regular_files import MAX_IMAGE_BYTES, MAX_VIDEO_BYTES, read_regular_file
from nvlm.data.shards.shard import MAX_TEXT_BYTES
from nvlm.importers.image_files import FileFolder
from nvlm.importers.normalise import normalise
from nvlm.importers.pictures import Picture, video_type
from nvlm.importers.spellings import ID_FIELDS

_NOT_IN_KEYS = re.compile(r"[^\w/-]+")
_MAX_KEY_LENGTH = 200
_MAX_DETAIL_LENGTH = 300
_MAX_FILES = 4
_MEDIA_TYPES = IMAGE_TYPES | VIDEO_TYPES


@dataclass(frozen=True)
class Record:
    """A sample to be written: the content of its members by extension."""

    key: str
    members: dict[str, bytes]
    # What the source says of it and the record does not hold, such as "source", "messages.name".
    unused: tuple[str, ...] = ()
    weighted_by: str = ""  # the field that multiplies its loss


@dataclass(frozen=True)
class Reject:
    """A sample that is left out. `name` says where it stands in the source."""

    name: str
    reason: str
    detail: str
    id: str = ""  # as the source says it
    files: tuple[str, ...] = ()  # images and videos that it names, the first ones

    @classmethod
    def of(cls, name: str, error: SampleError, fields: Any = None) -> Reject:
        """
        Args:
            fields: the sample as the source has it, for its id and files.
        """
        detail = _cut(error.detail)
        if not isinstance(fields, dict):
            return cls(name, error.reason, detail)
        said = sample_id(fields)
        said = "" if said is None else _cut(str(said))
        return cls(name, error.reason, detail, said, tuple(_file_names(fields)))


def _cut(text: str) -> str:
    too_long = len(text) > _MAX_DETAIL_LENGTH
    return f"{text[: _MAX_DETAIL_LENGTH - 3]}..." if too_long else text


def _file_names(fields: dict[str, Any]) -> list[str]:
    """The first names of images and videos among the values."""
    names: list[str] = []
    for value in fields.values():
        for item in value[:_MAX_FILES] if isinstance(value, list) else [value]:
            item = item.get("path") if isinstance(item, dict) else item
            if isinstance(item, str) and PurePath(item[-20:]).suffix[1:].lower() in _MEDIA_TYPES:
                names.append(_cut(item))
    return names[:_MAX_FILES]


class Reader(Protocol):
    """A source in one format. It is handed to processes by forking."""

    num_units: int
    # None: not known before reading.
    num_samples: int | None
    # The files and folders that decide what is read, for telling whether an interrupted import
    # may go on.
    files: list[Path]
    # What to say after the import of files that were chosen, and of those that were not read.
    notes: list[str]

    def read(self, unit: int) -> Iterator[Record | Reject]:
        """The samples of one unit, always the same ones in the same order."""
        ...


_parser: SampleParser | None = None


def make_record(
    key: str,
    fields: dict[str, Any],
    pictures: list[Picture],
    video: Picture | None = None,
    folder: FileFolder | None = None,
) -> Record:
    """The record of a sample, checked as indexing will check it. Image bytes stay as they are.

    Args:
        fields: what the source says of the sample, in any of the shapes that `normalise` knows.
        pictures, video: those that lie beside the text, such as members of a tar.
        folder: of the images and videos that `fields` names; None: it cannot name any.

    Raises:
        SampleError: an image is missing or is none, the text is unusable, or it says what cannot
            be taken over.
    """
    global _parser
    _parser = _parser or SampleParser()
    sample = normalise(fields, pictures, video, folder)
    members: dict[str, bytes] = {}
    for number, picture in enumerate(sample.pictures):
        data = _content(picture, "image")
        try:
            kind = image_type(data[:HEADER_BYTES])
        except SampleError:
            kind = image_type(data)
        members[f"{number}.{kind}"] = data
    if sample.video is not None:
        members[video_type(sample.video)] = _content(sample.video, "video")
    try:
        raw = json.dumps(sample.content, ensure_ascii=False, default=_refuse)
    except SampleError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError("json", f"cannot be written as JSON: {error}") from None
    raw = raw.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_TEXT_BYTES:
        raise SampleError("text", f"{len(raw):,} bytes, at most {MAX_TEXT_BYTES:,} are read")
    frames = int(sample.video is not None)
    _parser.parse({"json": raw}, len(sample.pictures) + frames, frames)
    unused = tuple(dict.fromkeys(sample.unused))
    return Record(key, {"json": raw, **members}, unused, sample.weighted_by)


def _refuse(value: object) -> None:
    """Of what JSON has no form for, such as bytes and dates in tables."""
    raise SampleError("text", f"{shown(value)} is {type(value).__name__}, expected text")


def _content(picture: Picture, what: str) -> bytes:
    if picture.data is not None:
        return picture.data
    path = picture.path
    if path is None:
        raise SampleError(f"missing_{what}", f"the {what} has neither bytes nor a path")
    limit = MAX_VIDEO_BYTES if what == "video" else MAX_IMAGE_BYTES
    try:
        return read_regular_file(path, limit)
    except (OSError, ValueError) as error:
        raise SampleError(f"missing_{what}", f"{path}: {error}") from None


def sample_id(fields: dict[str, Any]) -> Any:
    """What a sample calls itself; None where nothing can be a key."""
    found = (fields[name] for name in ID_FIELDS if fields.get(name) is not None)
    return next((value for value in found if not isinstance(value, (dict, list))), None)


class Keys:
    """Sample ids to keys of members: unique, and without dots, at which keys end.

    An id that comes again gets a number, `id-2`; exactly the same sample again is a duplicate.
    """

    def __init__(self) -> None:
        self._seen: dict[str, dict[int, str]] = {}
        self._taken: set[str] = set()

    def make(self, sample_id: Any, number: int, content: object, where: str = "") -> str:
        """Raises `SampleError` for a duplicate.

        Args:
            number: stands in for a missing id.
            content: what makes the sample; compared by its JSON.
            where: the sample stands, for the message about its duplicates.
        """
        if sample_id is None or isinstance(sample_id, (dict, list)) or str(sample_id) == "":
            sample_id = f"{number:09d}"
        base = clean_key(str(sample_id))
        try:
            fingerprint = hash(json.dumps(content, sort_keys=True, default=str))
        except (TypeError, ValueError, RecursionError) as error:
            raise SampleError("json", f"cannot be written as JSON: {error}") from None
        seen = self._seen.setdefault(base, {})
        if fingerprint in seen:
            first = f", in {seen[fingerprint]}" if seen[fingerprint] else ""
            raise SampleError(
                "duplicate", f"id {shown(sample_id)} with the same content came before{first}"
            )
        seen[fingerprint] = where
        key, again = base, len(seen)
        while key in self._taken:
            again = max(again, 2)
            key = f"{base}-{again}"
            again += 1
        self._taken.add(key)
        return key


def clean_key(text: str) -> str:
    """`text` with everything but letters, digits, `_`, `-` and `/` replaced."""
    cleaned = _NOT_IN_KEYS.sub("_", text).strip("/")[-_MAX_KEY_LENGTH:].strip("/")
    return re.sub("/+", "/", cleaned) or "_"
