"""Which members of a stored sample are its images or its video, and which are not read.

A member that is an image by its name or its content is read, or its sample is rejected by name;
none makes a sample of text alone. This file imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nvlm.data.samples.image_formats import IMAGE_TYPES, UNREAD_IMAGE_TYPES, has_image_signature

VIDEO_TYPES = {"mp4", "m4v", "mov", "mkv", "webm", "avi"}
TEXT_MEMBERS = ("json", "txt")
SOUND_TYPES = {"wav", "mp3", "flac", "ogg", "opus", "m4a", "aac"}
_OTHER_VIDEO_TYPES = {"mpg", "mpeg", "wmv", "flv", "3gp"}
# Of images that say something about a sample's picture and are none themselves.
_MASK_WORDS = {
    "mask",
    "masks",
    "seg",
    "segmentation",
    "depth",
    "alpha",
    "normal",
    "normals",
    "edges",
}
_MAX_DIGITS = 9  # of an image's number
_DIGITS = re.compile(r"(\d+)")
# As webdataset cuts names: the folder belongs to the key, the extension starts at the first dot.
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)


class MemberError(Exception):
    """The members leave open what the sample is; `reason` as that of `SampleError`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Media:
    """Members by their extension, `jpg` of `KEY.jpg`."""

    images: list[str]  # in order
    video: str | None
    unused: list[str]


def split_name(name: str) -> tuple[str, str] | None:
    """A tar member's key and its extension in lower case; None: it lacks one of them."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


def type_of(name: str) -> str:
    """The last part of a member's extension, as it is spelled: `jpg` of `0.jpg`."""
    return name.rpartition(".")[2]


def choose_media(names: Iterable[str], read_start: Callable[[str], bytes]) -> Media:
    """What the members `names` of a sample are; those of `TEXT_MEMBERS` are its text.

    Args:
        read_start: the first bytes of a member. Asked of samples without an image alone.

    Raises:
        MemberError: images whose order is unknown, images that are not read, several videos.
    """
    others = [name for name in names if name not in TEXT_MEMBERS]
    pictures = [name for name in others if type_of(name) in IMAGE_TYPES]
    videos = [name for name in others if type_of(name) in VIDEO_TYPES]
    placed = [name for name in pictures if _place(name) is not None]
    named = [name for name in pictures if _place(name) is None and not _is_mask(name)]
    if len({_DIGITS.sub("#", name.rpartition(".")[0]) for name in named}) == 1 and not placed:
        named = in_natural_order(named)  # one name, or page1 and page2
    elif named:
        raise MemberError(
            "missing_member",
            f"images {_listed(placed + named)}: which comes first is not known; call them 0.jpg, "
            "1.jpg and so on in the order of their marks",
        )
    images = _by_number(placed) or named
    if len(videos) > 1 or (videos and images):
        raise MemberError("video", "several videos, or images beside one; expected one alone")
    if not images and not videos:
        images = _hidden_image(others, read_start)
    used = {*images, *videos}
    unused = [name for name in others if name not in used]
    return Media(images, videos[0] if videos else None, unused)


def in_natural_order(names: list[str]) -> list[str]:
    """`2.jpg` before `10.jpg`: numbers by their length, then by their digits."""

    def order(name: str) -> list[tuple[int, str]]:
        parts = [part.lstrip("0") if part.isdecimal() else part for part in _DIGITS.split(name)]
        return [(len(part), part) if part.isdecimal() else (-1, part) for part in parts]

    return sorted(names, key=order)


def check_numbers(images: list[str]) -> None:
    """Raise `MemberError` unless images with numbers have those from 0 on."""
    numbers = [int(place) for place in map(_place, images) if place is not None]
    if numbers != list(range(len(numbers))):
        raise MemberError(
            "missing_member",
            f"images are numbered {numbers}, expected 0 to {len(numbers) - 1}",
        )


def _by_number(images: list[str]) -> list[str]:
    numbered: dict[int, str] = {}
    for name in images:
        place = _place(name) or "0"
        if len(place) > _MAX_DIGITS:
            raise MemberError("missing_member", f"an image number of {len(place)} digits")
        if int(place) in numbered:
            both = _listed([numbered[int(place)], name])
            raise MemberError("duplicate_key", f"image {int(place)} appears twice: {both}")
        numbered[int(place)] = name
    return [numbered[number] for number in sorted(numbered)]


def _place(name: str) -> str | None:
    """The digits of an image's place, `0` where it has no other name; None: another name."""
    number, dot, _ = name.rpartition(".")
    if not dot:
        return "0"
    return number if number.isdecimal() else None


def _is_mask(name: str) -> bool:
    return not _MASK_WORDS.isdisjoint(re.split(r"[\W_\d]+", name.rpartition(".")[0]))


def _hidden_image(names: list[str], read_start: Callable[[str], bytes]) -> list[str]:
    """The image among members that are none by their name: the one that is by its content."""
    for name in names:
        kind = type_of(name)
        if kind in SOUND_TYPES or kind in _OTHER_VIDEO_TYPES:
            what = "sound" if kind in SOUND_TYPES else "a video of a type that is not read"
            raise MemberError("missing_member", f"member {_shown(name)} is {what}")
        if kind in UNREAD_IMAGE_TYPES:
            raise MemberError(
                "missing_member", f"member {_shown(name)} is an image of a type that is not read"
            )
        if kind in IMAGE_TYPES:
            raise MemberError("missing_member", f"its only image, {_shown(name)}, is a mask")
    found = [name for name in names if has_image_signature(read_start(name))]
    if len(found) > 1:
        raise MemberError(
            "missing_member", f"images {_listed(found)}: call them 0.jpg, 1.jpg and so on"
        )
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(map(_shown, names[:4])) + more


def _shown(name: str) -> str:
    text = "".join(sign if sign.isprintable() else "?" for sign in name)
    return f".{text}" if len(text) <= 40 else f".{text[:37]}..."
