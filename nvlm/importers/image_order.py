"""Which image each mark of a sample's text stands for, and marks for images that have none."""

from __future__ import annotations

from typing import Any

from nvlm.data.samples.sample import IMAGE_MARK, SampleError
from nvlm.data.samples.text_members import VIDEO_MARK
from nvlm.importers.marks import Number
from nvlm.importers.media import Media
from nvlm.importers.pictures import Picture
from nvlm.importers.turns import Conversation, Index, Place


def in_order_of_marks(media: Media, places: list[Place]) -> list[Picture]:
    """The images in the order of their marks."""
    own = [place for place in places if isinstance(place, Picture)]
    asked = [place for place in places if isinstance(place, (Index, Number))]
    if not own and not asked:
        _check_numbers(media)
        return media.pictures
    if len(own) not in (0, len(places)) or len(asked) not in (0, len(places)):
        raise SampleError(
            "image_count", "some marks say which image they stand for, and others do not"
        )
    if own:
        if media.pictures and sorted(map(_identity, own)) != sorted(map(_identity, media.pictures)):
            raise SampleError(
                "image_count", "the sample names other images than its turns do; keep one of them"
            )
        return own
    wanted = [_place_of(place, asked, media) for place in asked]
    if sorted(wanted) != list(range(len(media.pictures))):
        raise SampleError(
            "image_count",
            f"marks ask for images {', '.join(map(str, map(_shown_place, asked)))} of "
            f"{len(media.pictures)}; each image is asked for once",
        )
    return [media.pictures[place] for place in wanted]


def _check_numbers(media: Media) -> None:
    numbers = media.numbers
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise SampleError(
            "image_count", f"images are numbered {', '.join(map(str, numbers))}: one is left out"
        )


def _identity(picture: Picture) -> tuple[str, bytes]:
    return str(picture.path), picture.data or b""


def _shown_place(place: Index | Number) -> int:
    return place.index if isinstance(place, Index) else place.number


def _place_of(place: Index | Number, asked: list[Any], media: Media) -> int:
    """Where in the list of images a mark's image is, from 0; -1: nowhere."""
    if isinstance(place, Index):
        return place.index
    numbers = media.numbers
    if numbers is None:
        first = min(p.number for p in asked if isinstance(p, Number))
        numbers = list(range(min(first, 1), min(first, 1) + len(media.pictures)))
    return numbers.index(place.number) if place.number in numbers else -1


def one_video(media: Media, conversation: Conversation | None) -> Picture | None:
    videos = conversation.videos if conversation is not None else []
    if media.video is not None and videos and _identity(media.video) == _identity(videos[0]):
        videos = videos[1:]
    found = [video for video in (media.video, *videos) if video is not None]
    if len(found) > 1:
        raise SampleError("video", f"{len(found)} videos; expected one alone")
    return found[0] if found else None


def add_marks(messages: list[dict[str, Any]], num_images: int, has_video: bool) -> None:
    texts = [m["content"] for m in messages if isinstance(m["content"], str)]
    marks = ""
    if num_images and not any(IMAGE_MARK in text for text in texts):
        if any("<img>" in text.lower() for text in texts):
            raise SampleError("image_mark", "the mark <img> is not known; write <image>")
        marks = f"{IMAGE_MARK}\n" * num_images
    if has_video and not any(VIDEO_MARK in text for text in texts):
        if num_images == 0 and sum(text.count(IMAGE_MARK) for text in texts) == 1:
            # LLaVA's video data marks videos as images.
            for message in messages:
                if isinstance(message["content"], str):
                    message["content"] = message["content"].replace(IMAGE_MARK, VIDEO_MARK)
        else:
            marks += f"{VIDEO_MARK}\n"
    for message in messages:
        if message["role"] == "user" and isinstance(message["content"], str):
            message["content"] = marks + message["content"]
            return
