"""What a sample shows: the images and the video that its fields name, in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.importers.fields import Fields
from nvlm.importers.image_files import FileFolder
from nvlm.importers.pictures import (
    Picture,
    holds_images,
    is_address,
    read_pictures,
    same_pictures,
)
from nvlm.importers.spellings import ANNOTATIONS, IMAGES, NUMBERED_IMAGE, VIDEOS


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


def _compare_with_given(
    fields: Fields, names: list[str], numbered: list[str], given: list[Picture]
) -> None:
    """Fields that only name what lies beside are done with; others contradict it."""
    for group in (*([name] for name in names), numbered):
        values: list[Any] = []
        for name in group:
            value = fields.look(name)
            values += value if isinstance(value, list) else [value]
        if not values or any(is_address(item) for item in values):
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
        if any(is_address(item) for item in (value if isinstance(value, list) else [value])):
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
        if not same_pictures(media.pictures, pictures):
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
    elif same_pictures(media.pictures, pictures):
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
    found = [name for name in fields if holds_images(fields.look(name))]
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
