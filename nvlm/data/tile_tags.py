"""Text tags that tell the language model which tile comes next (paper section 4.2, 1-D tags)."""

from __future__ import annotations

from typing import Literal

IMAGE_START = "<Image>"
IMAGE_END = "</Image>"
THUMBNAIL_TAG = "<tile_global_thumbnail>"

TileTags = Literal["none", "1d"]


def tile_tag(number: int) -> str:
    """The tag of a tile of the grid, counted from 1 in row-major order."""
    return f"<tile_{number}>"


def tags_of_image(num_tiles: int, tile_tags: TileTags, use_thumbnail: bool) -> list[str]:
    """One tag per tile, the thumbnail included in `num_tiles`.

    An image of a single tile has the thumbnail's tag, since that tile shows all of it; so has the
    last of several tiles when the stage uses thumbnails.
    """
    if tile_tags == "none":
        return [""] * num_tiles
    if num_tiles == 1:
        return [THUMBNAIL_TAG]
    if use_thumbnail:
        return [tile_tag(number) for number in range(1, num_tiles)] + [THUMBNAIL_TAG]
    return [tile_tag(number) for number in range(1, num_tiles + 1)]
