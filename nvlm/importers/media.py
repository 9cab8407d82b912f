"""Images and videos as samples give them: names of files, bytes, base64, data URLs, objects."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
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
from nvlm.importers.spellings import ANNOTATIONS, IMAGES, NUMBERED_IMAGE, VIDEOS

# Of an object that is an image or a video: where its content or name may stand.
_CONTENT_NAMES = (
    "bytes", "data", "base64", "b64_json", "image_url", "video_url", "image", "video", "url",
    "path", "src", "source", "file_name", "filename", "file", "file_url", "file_uri",
)  # fmt: skip
# Says how the content is written, which is seen by itself.
_SEEN = ("type", "media_type", "mime_type", "format", "encoding")
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\-\s]+")
_MIN_BASE64 = 64
_MARKDOWN = re.compile(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)")
_MAX_DEPTH = 3


@dataclass(frozen=True)
class Picture:
    """An image or a video of a sample: its bytes, or the file that has them."""

    data: bytes | None
    path: Path | None = None


@dataclass
class Media:
    """What a sample shows, beside what its turns name themselves."""

    pictures: list[Picture] = field(default_factory=list)
    numbers: list[int] | None = None  # of the pictures, where their fields are numbered
    video: Picture | None = None
    unused: list[str] = field(default_factory=list)


def take_media(
    fields: Fields, given: list[Picture], video: Picture | None, folder: FileFolder | None
) -> Media:
    """Takes the images and the video of a sample out of its fields.

    Args:
        given: images that lie beside the text, such as members of a tar. Fields may name them.
        folder: of the files that the fields name; None: they cannot name any.

    Raises:
        SampleError: one is missing or no image, or fields name different ones.
    """
    media = Media(list(given), video=video)
    names = fields.found(IMAGES)
    numbered = sorted((int(m[2]), n) for n in fields if (m := NUMBERED_IMAGE.fullmatch(n)))
    if given or video is not None:
        _compare_with_given(fields, names, [name for _, name in numbered], given)
    else:
        _take_images(fields, names, folder, media)
        _take_numbered(fields, numbered, folder, media)
        if not media.pictures:
            _take_by_content(fields, media)
    _take_video(fields, folder, media)
    if media.pictures and media.video is not None:
        raise SampleError("video", "a video beside images; expected one alone")
    return media


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


def _compare_with_given(
    fields: Fields, names: list[str], numbered: list[str], given: list[Picture]
) -> None:
    """Fields that only name what lies beside are done with; others contradict it."""
    for group in (*([name] for name in names), numbered):
        values: list[Any] = []
        for name in group:
            value = fields.look(name)
            values += value if isinstance(value, list) else [value]
        if not values or any(_is_address(item) for item in values):
            continue  # an address is listed
        known = [picture.path.name if picture.path is not None else None for picture in given]
        said = [Path(item).name if isinstance(item, str) else item for item in values]
        if len(said) != len(known) or not all(
            isinstance(name, str) and have in (None, name)
            for have, name in zip(known, said, strict=True)
        ):
            raise SampleError(
                "image_count",
                f"{' and '.join(map(fields.name, group))} is {shown(values)}, which is not what "
                f"stands beside it ({len(given)} images); keep one of them",
            )
        for name in group:
            fields.take(name)


def _take_images(fields: Fields, names: list[str], folder: FileFolder | None, media: Media) -> None:
    """From fields that are not numbered: the first, if the others agree with it."""
    read: list[tuple[str, list[Picture]]] = []
    addresses: list[str] = []
    problem: SampleError | None = None
    missing: list[tuple[str, Any]] = []
    for name in names:
        value = fields.look(name)
        if any(_is_address(item) for item in (value if isinstance(value, list) else [value])):
            addresses.append(name)
            continue
        where = fields.name(name)
        value = fields.take(name)
        try:
            read.append((where, read_pictures(value, where, folder, "image", media.unused)))
        except SampleError as error:
            problem = problem or error
            missing.append((where, value))
    if not read and problem is not None:
        raise problem
    if not read:
        if addresses:
            value = fields.look(addresses[0])
            raise SampleError(
                "missing_image",
                f"{fields.name(addresses[0])} is {shown(value)}, an address; download it first",
            )
        return
    first, media.pictures = read[0]
    for where, pictures in read[1:]:
        if not _same_pictures(media.pictures, pictures):
            raise SampleError(
                "fields", f"{first} and {where} name different images; keep one of the fields"
            )
    for where, value in missing:
        _check_is_name(where, value, first, media)


def _check_is_name(where: str, value: Any, first: str, media: Media) -> None:
    """Of a field with names of no files: they may be names of the images that were found."""
    values = value if isinstance(value, list) else [value]
    names = [Path(item).name for item in values if isinstance(item, str) and len(item) < 4096]
    known = [picture.path.name if picture.path is not None else None for picture in media.pictures]
    if len(names) == len(values) == len(known) and all(
        have is None or have == name for have, name in zip(known, names, strict=True)
    ):
        media.unused.append(where)
        return
    raise SampleError(
        "missing_image", f"{where} is {shown(value)}, which is not there, beside {first}; keep one"
    )


def _take_numbered(
    fields: Fields, numbered: list[tuple[int, str]], folder: FileFolder | None, media: Media
) -> None:
    pictures: list[Picture] = []
    numbers: list[int] = []
    for number, name in numbered:
        where = fields.name(name)
        for picture in read_pictures(fields.take(name), where, folder, "image", media.unused):
            pictures.append(picture)
            numbers.append(number)
    if not pictures:
        return
    if not media.pictures:
        if len(set(numbers)) < len(numbers):
            raise SampleError("fields", f"images of one number: {shown(numbers)}; keep one of each")
        media.pictures, media.numbers = pictures, numbers
    elif _same_pictures(media.pictures, pictures):
        media.numbers = numbers
    elif len(media.pictures) == 1 and numbers == list(range(2, 2 + len(numbers))):
        media.pictures, media.numbers = media.pictures + pictures, [1, *numbers]
    else:
        _, name = numbered[0]
        raise SampleError(
            "fields", f"images beside those of {name} and so on, in an order that is not known; "
            "put all of them into one field images"
        )  # fmt: skip


def _take_by_content(fields: Fields, media: Media) -> None:
    """Images in a field of another name, if there is only one such field."""
    found = [name for name in fields if _holds_images(fields.look(name))]
    found = [name for name in found if not ANNOTATIONS.fullmatch(name)] or found[:1]
    if len(found) > 1:
        names = " and ".join(fields.name(name) for name in found[:2])
        raise SampleError(
            "fields", f"{names} hold images, in an order that is not known; call them image_1, "
            "image_2 and so on, or keep one"
        )  # fmt: skip
    if found:
        where = fields.name(found[0])
        media.pictures = read_pictures(fields.take(found[0]), where, None, "image", media.unused)


def _take_video(fields: Fields, folder: FileFolder | None, media: Media) -> None:
    found: list[tuple[str, Picture]] = []
    for name in fields.found(VIDEOS):
        where, value = fields.name(name), fields.take(name)
        if media.video is not None:
            media.unused.append(where)
            continue
        videos = read_pictures(value, where, folder, "video", media.unused)
        if len(videos) > 1:
            raise SampleError("video", f"{where} has {len(videos)} videos; expected one alone")
        found += [(where, video) for video in videos]
    if len({(video.path, video.data) for _, video in found}) > 1:
        names = " and ".join(where for where, _ in found)
        raise SampleError("video", f"{names} name different videos; expected one alone")
    if found:
        media.video = found[0][1]


def check_unread(fields: Fields, folder: FileFolder | None, pictures: list[Picture]) -> None:
    """Raise `SampleError` if a field that is left names or holds an image that is not used.

    Args:
        pictures: those that are used.
    """
    for name in fields:
        value, where = fields.look(name), fields.name(name)
        if ANNOTATIONS.fullmatch(name) and pictures:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and _is_file_name(item):
                if not pictures or _is_another_file(item, folder, pictures):
                    have = "beside its images" if pictures else "no image"
                    raise SampleError(
                        "missing_image",
                        f"{have}, but its field {where} is {shown(item)}; rename the field to "
                        "image, or remove it",
                    )
            elif _is_image(item) or (not pictures and _bytes_of(item)):
                raise SampleError(
                    "fields" if pictures else "image_format",
                    f"its field {where} holds bytes, which are not read; where they are an image, "
                    "rename the field to image, else remove it",
                )


def refuse_named_files(text: str, where: str, folder: FileFolder | None) -> None:
    """Raise `SampleError` if Markdown in a text shows an image that is there."""
    if folder is None or "![" not in text:
        return
    for name in _MARKDOWN.findall(text):
        if _is_file_name(name) and _is_another_file(name, folder, []):
            raise SampleError(
                "image_mark",
                f"{where} shows {shown(name)} as Markdown; name it in a field images, and write "
                "<image> in its place",
            )


def _is_file_name(text: str) -> bool:
    name = text[-20:]
    return "://" not in text and Path(name).suffix[1:].lower() in IMAGE_TYPES and len(text) < 4096


def _is_another_file(name: str, folder: FileFolder | None, pictures: list[Picture]) -> bool:
    if folder is None:
        return False
    try:
        path = find_file(folder, name, "image")
    except SampleError:
        return False
    return not any(_same_picture(Picture(None, path), picture) for picture in pictures)


def _same_pictures(some: list[Picture], others: list[Picture]) -> bool:
    return len(some) == len(others) and all(map(_same_picture, some, others))


def _same_picture(one: Picture, other: Picture) -> bool:
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


def _is_address(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) <= len(_CONTENT_NAMES) and any(
            _is_address(value[name]) for name in ("url", "image_url") if name in value
        )
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://", "s3://"))


def _bytes_of(value: Any) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) and value else None


def _holds_images(value: Any) -> bool:
    items = value[:1] if isinstance(value, list) else [value]
    return any(_is_image(item) for item in items)


def _is_image(value: Any) -> bool:
    if isinstance(value, str):
        return value[:11].lower() == "data:image/"
    data = _bytes_of(value)
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
