"""A stage's tiles as far as they are known without a tokenizer; sizes/visual.py has more."""

from __future__ import annotations

from typing import Literal

TileTags = Literal["none", "1d", "2d_grid", "2d_box", "soft"]
Tiling = Literal["stretch", "pad", "pad_skip"]


def with_thumbnail(num_cells, use_thumbnail: bool):
    """Tiles of an image cut into `num_cells` (an int, or an array of them), with its thumbnail.

    An image that is one tile never gets one: the tile shows all of it.
    """
    return num_cells + (num_cells > 1) * use_thumbnail


def max_tag_tokens(tile_tags: TileTags, max_num_tiles: int, image_size: int) -> int:
    """Tokens of the longest text tag with Qwen2's vocabulary, where a digit is a token.

    Known before a tokenizer is loaded, to check sequence lengths (golden values in tests/data).
    Those of the run's own are counted when it is read (`SampleEncoder.check_room`).
    """
    tiles = max_num_tiles
    match tile_tags:
        case "none" | "soft":
            return 0
        case "1d":  # `<tile_6>`; `<tile_global_thumbnail>` is as long
            return 4 + len(str(tiles))
        case _ if tiles == 1:  # `<tile_global_thumbnail>`
            return 5
        case "2d_grid":  # `<tile_x0_y0>`
            return 5 + 2 * len(str(tiles - 1))
        case "2d_box":  # `<box> (0, 0), (448, 448) </box>`
            corners = [
                (x * image_size, y * image_size, (x + 1) * image_size, (y + 1) * image_size)
                for x in range(tiles)
                for y in range(tiles // (x + 1))
            ]
            return 14 + max(sum(len(str(number)) for number in corner) for corner in corners)
