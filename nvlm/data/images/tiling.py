"""Dynamic tiling: an image becomes a grid of square tiles and a thumbnail.

The grid is the one of InternVL's `dynamic_preprocess`, which NVLM-D uses (paper section 4.1): of
all grids of at most `max_num_tiles` tiles the one closest in aspect ratio; of two equally close
ones the larger, if the image has more than half the pixels that it would be resized to.

`stage.tiling: pad` has one square grid for all images, into which each is resized with its aspect
ratio kept, at the top left; the rest is padding. With `pad_skip` tiles of padding alone are left
out, as SPHINX-X (arXiv 2402.05935) does. Both follow from an image's size: what is not padding is a
rectangle of tiles, which is as long as the square.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from nvlm.config.tiles import Tiling, with_thumbnail

# The mean of what encoders were trained on, which they read as zeros.
PADDING_RGB = (124, 116, 104)


def candidate_grids(max_num_tiles: int) -> list[tuple[int, int]]:
    """All (columns, rows) of at most `max_num_tiles` tiles, by number of tiles."""
    grids = [
        (columns, rows)
        for columns in range(1, max_num_tiles + 1)
        for rows in range(1, max_num_tiles // columns + 1)
    ]
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))


def choose_grids(
    widths: NDArray,
    heights: NDArray,
    max_num_tiles: int,
    image_size: int,
    tiling: Tiling = "stretch",
) -> tuple[NDArray, NDArray]:
    """(columns, rows), each [n] int64, for n images of the given pixel sizes [n].

    Of `pad_skip` those of the tiles that are not left out. An image of one pixel is one tile
    whatever the tiling: that is how an index has the frames of a video.
    """
    widths, heights = np.asarray(widths, np.int64), np.asarray(heights, np.int64)
    if tiling != "stretch":
        side = math.isqrt(max_num_tiles)
        sizes = _fit(widths, heights, side * image_size)
        columns, rows = (-(-size // image_size) for size in sizes)
        if tiling == "pad":
            columns = rows = np.full_like(widths, side)
        is_one_pixel = (widths == 1) & (heights == 1)
        return np.where(is_one_pixel, 1, columns), np.where(is_one_pixel, 1, rows)
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
def choose_grid(
    width: int, height: int, max_num_tiles: int, image_size: int, tiling: Tiling = "stretch"
) -> tuple[int, int]:
    """(columns, rows) of an image of `width` x `height` pixels; tiles are `image_size` square."""
    columns, rows = choose_grids(
        np.array([width]), np.array([height]), max_num_tiles, image_size, tiling
    )
    return int(columns[0]), int(rows[0])


def _fit(widths: NDArray, heights: NDArray, side: int) -> tuple[NDArray, NDArray]:
    """Those sizes scaled so that the longer side is `side`, rounded, and at least one pixel."""
    longest = np.maximum(widths, heights)
    return (
        np.maximum(1, (2 * widths * side + longest) // (2 * longest)),
        np.maximum(1, (2 * heights * side + longest) // (2 * longest)),
    )


def cut_tiles(
    pixels: NDArray[np.uint8],
    max_num_tiles: int,
    use_thumbnail: bool,
    image_size: int,
    resize: Literal["fast", "exact"] = "exact",
    tiling: Tiling = "stretch",
) -> NDArray[np.uint8]:
    """[n, 3, image_size, image_size] uint8: tiles row by row, the thumbnail last.

    The image is resized bicubically (with antialiasing); by `stretch` without keeping its aspect
    ratio, as NVLM-D was trained.

    Args:
        pixels: [height, width, 3] RGB, such as `image.decode_image` gives.
        resize: `exact` is Pillow's resize, bit for bit; `fast` is torch's, within 2/255 of it.
    """
    height, width, _ = pixels.shape
    columns, rows = choose_grid(width, height, max_num_tiles, image_size, tiling)
    num_cells = columns * rows
    num_tiles = with_thumbnail(num_cells, use_thumbnail)
    resize_to = _resize_fast if resize == "fast" else _resize_exact
    if tiling != "stretch":
        resize_to = functools.partial(_resize_padded, resize_to)
    tiles = np.empty((num_tiles, 3, image_size, image_size), np.uint8)
    resized = resize_to(pixels, columns * image_size, rows * image_size)
    resized = resized.reshape(3, rows, image_size, columns, image_size)
    grid = tiles[:num_cells].reshape(rows, columns, 3, image_size, image_size)
    grid[...] = resized.transpose(1, 3, 0, 2, 4)
    if num_tiles > num_cells:
        tiles[-1] = resize_to(pixels, image_size, image_size)
    return tiles


def _resize_padded(resize_to, pixels: NDArray[np.uint8], width: int, height: int) -> NDArray:
    """[3, height, width]: the image with its aspect ratio kept, as large as the longer side."""
    (new_width, new_height) = (
        int(size) for size in _fit(pixels.shape[1], pixels.shape[0], max(width, height))
    )
    padded = np.empty((3, height, width), np.uint8)
    padded[...] = np.array(PADDING_RGB, np.uint8)[:, None, None]
    padded[:, :new_height, :new_width] = resize_to(pixels, new_width, new_height)
    return padded


def _resize_exact(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """[3, height, width]."""
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def _resize_fast(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """[3, height, width]. Vectorised where the processor has AVX2; the same pixels elsewhere."""
    old_height, old_width, _ = pixels.shape
    # A view in channels-last order, for which torch has a kernel of its own.
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    # torch resizes rows first; so does Pillow unless the height shrinks by far more than the width.
    # What is cut off at 0 and 255 between the two passes depends on their order.
    if old_height - height > max(0, 2 * (old_width - width)):
        image = functional.interpolate(image, (height, old_width), mode="bicubic", antialias=True)
    image = functional.interpolate(image, (height, width), mode="bicubic", antialias=True)
    return image[0].numpy()
