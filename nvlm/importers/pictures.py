"""One image or video as samples give it: bytes, base64, data URLs, names of files, objects."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from nvlm.data.images.image import HEADER_BYTES, image_type
from nvlm.data.samples.image_formats import IMAGE_TYPES
from nvlm.data.samples.members import VIDEO_TYPES
from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.data.shards.regular_files import MAX_IMAGE_BYTES, read_regular_file
from nvlm.importers.fields import Fields, is_nothing
from nvlm.importers.image_files import FileFolder, find_file

# Of an object that is an image or a video: where its content or name may stand.
_CONTENT_NAMES = (
    "bytes", "data", "base64", "b64_json", "image_url", "video_url", "image", "video", "url",
    "path", "src", "source", "file_name", "filename", "file", "file_url", "file_uri",
)  # fmt: skip
# Says how the content is written, which is seen by itself.
_SEEN = ("type", "media_type", "mime_type", "format", "encoding")
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\-\s]+")
_MIN_BASE64 = 64
_MAX_DEPTH = 3


@dataclass(frozen=True)
class Picture:
    """An image or a video of a sample: its bytes, or the file that has them."""

    data: bytes | None
    path: Path | None = None


def read_pictures(
    value: Any, where: str, folder: FileFolder | None, what: str, unused: list[str]
) -> list[Picture]:
    """The images (or, for `what` "video", videos) of a field.

    Args:
        where: the field, for messages.
        unused: gets the names of what objects say beside.

    Raises:
        SampleError: one is missing, or is of no form that is known.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = [value]
    values = value if isinstance(value, list) else [value]
    return [_read_one(item, where, folder, what, unused) for item in values if not is_nothing(item)]


def _read_one(
    value: Any, where: str, folder: FileFolder | None, what: str, unused: list[str], depth: int = 0
) -> Picture:
    if isinstance(value, bytes):
        return Picture(value)
    if isinstance(value, str):
        return _read_text(value, where, folder, what)
    if not isinstance(value, dict) or depth == _MAX_DEPTH:
        raise SampleError(
            f"missing_{what}", f"{where} is {shown(value)}, expected bytes or the name of a file"
        )
    inner = Fields(value, f"{where}.")
    found = inner.found(_CONTENT_NAMES)
    if not found:
        raise SampleError(
            f"missing_{what}", f"{where} has neither bytes nor a name: {shown(value)}"
        )
    for name in inner.found(_SEEN):
        if isinstance(inner.look(name), str):
            inner.take(name)
    content = inner.take(found[0])
    picture = _read_one(content, where, folder, what, unused, depth + 1)
    if picture.data is not None and found[1:] and isinstance(inner.look(found[1]), str):
        picture = Picture(picture.data, Path(inner.take(found[1])))
    inner.refuse()
    unused += inner.leave(f"its {found[0]}")
    return picture


def _read_text(value: str, where: str, folder: FileFolder | None, what: str) -> Picture:
    if value[:5].lower() == "data:":
        return Picture(_read_data_url(value, where, what))
    if value[:7].lower() == "file://":
        value = unquote(urlsplit(value).path)
    if len(value) >= _MIN_BASE64 and _BASE64.fullmatch(value) and not _has_suffix(value):
        return Picture(_from_base64(value, where, what))
    if folder is None and "://" not in value:
        raise SampleError(
            f"missing_{what}", f"its field {where} is {shown(value)}, and nothing stands beside it"
        )
    return Picture(None, find_file(folder or FileFolder(Path()), value, what))


def _has_suffix(name: str) -> bool:
    return Path(name[-20:]).suffix[1:].lower() in IMAGE_TYPES | VIDEO_TYPES


def _read_data_url(value: str, where: str, what: str) -> bytes:
    head, comma, content = value.partition(",")
    if not comma:
        raise SampleError(f"missing_{what}", f"{where} is a data URL without data: {shown(value)}")
    if head.lower().endswith(";base64"):
        return _from_base64(content, where, what)
    return unquote_to_bytes(content)


def _from_base64(text: str, where: str, what: str) -> bytes:
    text = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"missing_{what}", f"{where} is not base64: {error}") from None


def same_pictures(some: list[Picture], others: list[Picture]) -> bool:
    return len(some) == len(others) and all(map(same_picture, some, others))


def same_picture(one: Picture, other: Picture) -> bool:
    if one.data is None and other.data is None and one.path == other.path:
        return True
    try:
        return _content(one) == _content(other)
    except (OSError, ValueError):
        return False


def _content(picture: Picture) -> bytes:
    if picture.data is not None:
        return picture.data
    assert picture.path is not None
    return read_regular_file(picture.path, MAX_IMAGE_BYTES)


def is_address(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) <= len(_CONTENT_NAMES) and any(
            is_address(value[name]) for name in ("url", "image_url") if name in value
        )
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://", "s3://"))


def bytes_of(value: Any) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) and value else None


def holds_images(value: Any) -> bool:
    items = value[:1] if isinstance(value, list) else [value]
    return any(is_image(item) for item in items)


def is_image(value: Any) -> bool:
    if isinstance(value, str):
        return value[:11].lower() == "data:image/"
    data = bytes_of(value)
    if data is None:
        return False
    try:
        image_type(data[:HEADER_BYTES])
    except SampleError:
        return False
    return True


def video_type(video: Picture) -> str:
    """The extension of a video's member.

    Raises:
        SampleError: neither its name nor its first bytes say a type that is read.
    """
    extension = video.path.suffix[1:].lower() if video.path is not None else ""
    head = (video.data or b"")[:12]
    if extension not in VIDEO_TYPES and head:
        signs = {"mp4": head[4:8] == b"ftyp", "mkv": head[:4] == b"\x1a\x45\xdf\xa3",
                 "avi": head[:4] == b"RIFF" and head[8:] == b"AVI "}  # fmt: skip
        extension = next((name for name, is_it in signs.items() if is_it), extension)
    if extension not in VIDEO_TYPES:
        known = ", ".join(sorted(VIDEO_TYPES))
        raise SampleError("video", f"{video.path or 'a video without a name'} is none of {known}")
    return extension
