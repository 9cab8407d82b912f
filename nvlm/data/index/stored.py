"""A stored sample read: its text parsed, its images looked at, and later decoded.

The index, training and evaluation all read samples through here, so that they agree on what a
sample is and on what is wrong with one. This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.data.images.image import HEADER_BYTES, decode_image, read_image_size
from nvlm.data.images.video import count_frames, decode_frames
from nvlm.data.samples.kinds import Sample, SampleParser
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import ByteRange, ShardReader, StoredSample

# In place of its pixels: a square so small is one tile, as every frame is.
_FRAME_SIZE: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class ReadSample:
    """A sample and where its parts lie."""

    sample: Sample
    texts: dict[str, ByteRange]  # text members by extension
    images: list[ByteRange]  # of a video: the video, once per frame
    sizes: list[tuple[int, int]]  # (width, height) of each image, upright, in pixels
    num_frames: int  # of its video; 0: it has none
    unused: list[str]  # extensions of members that are not read


def read_sample(
    reader: ShardReader,
    shard: str,
    stored: StoredSample,
    parser: SampleParser,
    max_megapixels: float,
    max_frames: int,
) -> ReadSample:
    """The text and the image headers of a sample; no image is decoded.

    Args:
        max_megapixels: `data.max_image_megapixels`.
        max_frames: taken from a video, `data.num_video_frames`.

    Raises:
        SampleError: it cannot be used.
        DataError: the source's settings do not fit such samples.
    """
    texts = stored.texts(parser.field_map)
    media = stored.media(lambda where: reader.read(shard, where), parser.field_map)
    images, video = media.images, media.video
    sizes = [_read_size(reader, shard, image, max_megapixels) for image in images]
    num_frames = 0
    if video is not None:
        num_frames = count_frames(reader.read(shard, video), max_frames, max_megapixels)
        images, sizes = [video] * num_frames, [_FRAME_SIZE] * num_frames
    members = {name: reader.read(shard, where) for name, where in texts.items()}
    sample = parser.parse(members, len(images), num_frames)
    return ReadSample(sample, texts, images, sizes, num_frames, media.unused)


def decode_images(
    reader: ShardReader,
    shard: str,
    images: Sequence[ByteRange],
    num_frames: int,
    max_megapixels: float,
) -> Iterator[NDArray[np.uint8]]:
    """Each image, or each frame of the video, as [height, width, 3] RGB.

    Args:
        images, num_frames: as in `ReadSample`; no images: those of turns that are cut.

    Raises:
        SampleError: one is damaged or too large.
    """
    if num_frames and images:
        yield from decode_frames(reader.read(shard, images[0]), num_frames, max_megapixels)
        return
    for where in images:
        yield decode_image(reader.read(shard, where), max_megapixels)


def _read_size(
    reader: ShardReader, shard: str, image: ByteRange, max_megapixels: float
) -> tuple[int, int]:
    if image.size > HEADER_BYTES:
        head = reader.read(shard, ByteRange(image.offset, HEADER_BYTES))
        # Where that is not all of the header (a long colour profile, say), the whole file decides.
        with suppress(SampleError):
            return read_image_size(head, max_megapixels)
    return read_image_size(reader.read(shard, image), max_megapixels)
