"""Dynamic tiling: an image becomes up to `max_num` square tiles and a thumbnail of the whole."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def choose_grid(width, height, min_num=1, max_num=6, image_size=448):
    """(columns, rows) of the tile grid whose aspect ratio is closest to the image's.

    Between grids equally close, one with more tiles wins if the image has over half its pixels.
    """
    grids = sorted(
        (
            (columns, rows)
            for columns in range(1, max_num + 1)
            for rows in range(1, max_num + 1)
            if min_num <= columns * rows <= max_num
        ),
        key=lambda grid: grid[0] * grid[1],
    )
    best, best_difference = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * image_size**2 * columns * rows
        if difference < best_difference or (difference == best_difference and large_enough):
            best, best_difference = (columns, rows), difference
    return best


def to_rgb(image):
    """The image in RGB, without alpha. 16-bit gray keeps its upper byte."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def dynamic_preprocess(image, min_num=1, max_num=6, image_size=448, use_thumbnail=True):
    """Tiles of `image` in row-major order, then the thumbnail if there is more than one tile.

    Returns a list of RGB `PIL.Image`s of image_size x image_size.
    """
    image = to_rgb(image)
    columns, rows = choose_grid(image.width, image.height, min_num, max_num, image_size)
    resized = image.resize((columns * image_size, rows * image_size), Image.Resampling.BICUBIC)
    tiles = [
        resized.crop((x, y, x + image_size, y + image_size))
        for y in range(0, rows * image_size, image_size)
        for x in range(0, columns * image_size, image_size)
    ]
    if use_thumbnail and len(tiles) > 1:
        tiles.append(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return tiles


def build_transform(input_size=448, statistics=(IMAGENET_MEAN, IMAGENET_STD)):
    """A function from one `PIL.Image` to a normalised float tensor [3, input_size, input_size].

    statistics: mean and deviation of RGB values in 0..1.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)

    def transform(tile):
        tile = to_rgb(tile)
        if tile.size != (input_size, input_size):
            tile = tile.resize((input_size, input_size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(tile)).permute(2, 0, 1)
        return (pixels.float() / 255 - mean) / std

    return transform


def load_image(
    image,
    input_size=448,
    max_num=6,
    use_thumbnail=True,
    min_num=1,
    statistics=(IMAGENET_MEAN, IMAGENET_STD),
):
    """Pixel values [tiles, 3, input_size, input_size] of a `PIL.Image` or of an image file.

    A file's EXIF rotation is applied, as in training. `statistics`: mean and deviation of RGB
    values in 0..1.
    """
    if isinstance(image, (str, Path)):
        with Image.open(image) as opened:
            image = to_rgb(ImageOps.exif_transpose(opened))
    tiles = dynamic_preprocess(image, min_num, max_num, input_size, use_thumbnail)
    return torch.stack([*map(build_transform(input_size, statistics), tiles)])
