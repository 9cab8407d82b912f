"""Marks with which texts place their images, in the spellings of several models."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nvlm.data.samples.sample import IMAGE_MARK, SampleError
from nvlm.data.samples.text_members import VIDEO_MARK, shown

_MARK = re.compile(
    r"(?P<numbered><\|?(?:image|img)[ _-]?(?P<number>\d{1,4})\|?>)"
    r"|(?P<tag><(?P<kind>img|image)>(?P<path>[^<>\n]+)</(?P=kind)>)"
    r"|(?P<video><\|?video(?:[ _-]?1)?\|?>|<VideoHere>"
    r"|(?:<\|vision_start\|>)?(?:<\|video_pad\|>)+(?:<\|vision_end\|>)?)"
    r"|(?P<image>(?:<Img>)?<ImageHere>(?:</Img>)?|<\|?image\|?>|<\|?img\|>|<image_placeholder>"
    r"|<start_of_image>|(?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?)"
    r"|(?P<audio><\|?audio(?:[ _-]?\d+)?\|?>|<AudioHere>|<\|audio_[a-z]+\|>|<\|AUDIO\|>)"
    r"|(?P<place><ref-object>|<bbox>)"
    r"|(?P<other><fake_token_around_image>|<IMG_CONTEXT>|<\|vision_start\|>|<\|vision_end\|>"
    r"|<image_soft_token>|<im_patch>)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Number:
    """The image of this number, as a mark such as `<image_2>` has it."""

    number: int


@dataclass(frozen=True)
class Name:
    """The image that a mark such as `<img>a.jpg</img>` names."""

    name: str


# For each mark: the image that it asks for. None: the next one.
MarkedImage = Number | Name | None


def read_marks(text: str, where: str) -> tuple[str, list[MarkedImage]]:
    """The text with our own marks, and for each image's mark the image that it asks for.

    Raises:
        SampleError: it marks a sound, a place that another field would give, or an image in a way
            that is not known.
    """
    if "<" not in text:
        return text, []
    images: list[MarkedImage] = []

    def replace(match: re.Match[str]) -> str:
        found = match[0]
        if found == IMAGE_MARK:
            images.append(None)
        if found in (IMAGE_MARK, VIDEO_MARK):
            return found
        # A pair of tags, as HTML and XML have them; marks come alone.
        if match["tag"] is None and f"</{found.strip('<>|')}>" in text:
            return found
        if match["numbered"]:
            images.append(Number(int(match["number"])))
            return IMAGE_MARK
        if match["tag"]:
            images.append(Name(match["path"].strip()))
            return IMAGE_MARK
        if match["image"]:
            images.append(None)
            return IMAGE_MARK
        if match["video"]:
            return VIDEO_MARK
        what = "a sound, which is not read" if match["audio"] else "something that is not read"
        if match["place"]:
            what = "a place, which belongs into the text itself"
        raise SampleError("image_mark", f"{where} has the mark {shown(found)} of {what}")

    return _MARK.sub(replace, text), images


def refuse_marks(text: object, where: str) -> None:
    """Raise `SampleError` if `text` has a mark: it stands where no image can.

    Marks of our own are left to kinds.py.
    """
    if not isinstance(text, str) or "<" not in text:
        return
    written, _ = read_marks(text, where)
    if written != text:
        raise SampleError("image_mark", f"{where} has the mark of an image: {shown(text)}")
