"""Dynamic tiling: an image becomes a grid of square tiles and a thumbnail.

The grid is the one of InternVL's `dynamic_preprocess`, which NVLM-D uses (paper section 4.1): of
all grids of at most `max_num_tiles` tiles the one closest in aspect ratio; of two equally close
ones the larger, if the image has more than half the pixels that it would be resized to.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nvlm.data.sample import SampleError

# What Pillow raises for broken files; `SyntaxError` comes from its PNG reader.
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Enough for the headers of nearly all images; the rest are read whole.
HEADER_BYTES = 1 << 16


def candidate_grids(max_num_tiles: int) -> list[tuple[int, int]]:
    """All (columns, rows) of at most `max_num_tiles` tiles, by number of tiles."""
    grids = [
        (columns, rows)
        for columns in range(1, max_num_tiles + 1)
        for rows in range(1, max_num_tiles // columns + 1)
    ]
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))


def choose_grids(
    widths: NDArray, heights: NDArray, max_num_tiles: int, image_size: int
) -> tuple[NDArray, NDArray]:
    """(columns, rows), each [n] int64, for n images of the given pixel sizes [n]."""
    widths, heights = np.asarray(widths, np.int64), np.asarray(heights, np.int64)
    ratios, areas = widths / heights, widths * heights
    best_columns = np.ones_like(widths)
    best_rows = np.ones_like(widths)
    best_difference = np.full(widths.shape, np.inf)
    for columns, rows in candidate_grids(max_num_tiles):
        difference = np.abs(ratios - columns / rows)
        large_enough = areas > 0.5 * image_size * image_size * columns * rows
        better = (difference < best_difference) | ((difference == best_difference) & large_enough)
        best_columns[better], best_rows[better] = columns, rows
        best_difference = np.minimum(best_difference, difference)
    return best_columns, best_rows


@functools.lru_cache(maxsize=4096)
def choose_grid(width: int, height: int, max_num_tiles: int, image_size: int) -> tuple[int, int]:
    """(columns, rows) of an image of `width` x `height` pixels; tiles are `image_size` square."""
    columns, rows = choose_grids(np.array([width]), np.array([height]), max_num_tiles, image_size)
    return int(columns[0]), int(rows[0])


def count_tiles(
    widths: NDArray, heights: NDArray, max_num_tiles: int, use_thumbnail: bool, image_size: int
) -> NDArray:
    """[n] int64: tiles of n images, the thumbnail counted. One tile never gets a thumbnail."""
    columns, rows = choose_grids(widths, heights, max_num_tiles, image_size)
    tiles = columns * rows
    return tiles + (tiles > 1) if use_thumbnail else tiles


def cut_tiles(
    image: Image.Image, max_num_tiles: int, use_thumbnail: bool, image_size: int
) -> NDArray[np.uint8]:
    """[n, 3, image_size, image_size] uint8: tiles row by row, the thumbnail last.

    The image is converted to RGB first and resized by Pillow's bicubic filter without keeping its
    aspect ratio, as NVLM-D was trained.
    """
    image = image.convert("RGB")
    columns, rows = choose_grid(*image.size, max_num_tiles, image_size)
    tiles = _grid_tiles(image, columns, rows, image_size)
    if use_thumbnail and columns * rows > 1:
        tiles = np.concatenate([tiles, _grid_tiles(image, 1, 1, image_size)])
    return np.ascontiguousarray(tiles)


def _grid_tiles(image: Image.Image, columns: int, rows: int, size: int) -> NDArray[np.uint8]:
    resized = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized).reshape(rows, size, columns, size, 3)
    return pixels.transpose(0, 2, 4, 1, 3).reshape(rows * columns, 3, size, size)


def decode_image(data: bytes) -> Image.Image:
    """The first frame as RGB.

    Raises:
        SampleError: the bytes are no image that Pillow reads, are cut short or far too large.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except _DECODING_ERRORS as error:
        raise SampleError("image", f"not readable as an image: {error}") from None


def read_image_size(data: bytes) -> tuple[int, int]:
    """(width, height) from an image's first bytes; raises `SampleError` if they do not tell."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except _DECODING_ERRORS as error:
        raise SampleError("image", f"not readable as an image: {error}") from None
    if width < 1 or height < 1:
        raise SampleError("image", f"{width} x {height} pixels")
    return width, height
