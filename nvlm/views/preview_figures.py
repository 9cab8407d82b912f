"""The images of the preview page, put together from the tiles that the model gets."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nvlm.views.preview import ShownImage, describe_image

# Longest sides in the page, in pixels.
_PICTURE_SIDE = 480
_TILE_SIDE = 128
_JPEG_QUALITY = 82
_FEW_COLOURS = 1024
# How they are drawn, in CSS pixels: a small one (an icon is one tile) at least so wide.
_MIN_SHOWN_WIDTH = 140
_MAX_SHOWN_HEIGHT = 400


@dataclass(frozen=True)
class Cell:
    """Where a tile lies in the picture."""

    tag: str
    label: str  # what tells it from the others; "" where it is the only one


@dataclass(frozen=True)
class Tile:
    tag: str
    picture: str  # data URL


@dataclass(frozen=True)
class Figure:
    """The image, its grid, and its tiles as the model gets them."""

    picture: str  # data URL
    shown_width: int  # CSS pixels
    columns: int
    rows: int
    cells: list[Cell]
    caption: str
    tiles: list[Tile]  # of the grid; none where the picture is the tile
    thumbnail: Tile | None
    tile_side: int = _TILE_SIDE

    @property
    def num_tiles(self) -> int:
        return len(self.tiles) + (self.thumbnail is not None)


def draw_figure(image: ShownImage, number: int | None = None) -> Figure:
    """What the page shows of an image; `number` if there are several."""
    columns, rows = image.grid
    num_cells = columns * rows
    picture = _whole_picture(image)
    width, height = picture.size
    shown_width = min(max(width, _MIN_SHOWN_WIDTH), width * _MAX_SHOWN_HEIGHT // height)
    cells = [
        Cell(tag, _label(tag, place) if num_cells > 1 else "")
        for place, tag in enumerate(image.tags[:num_cells], start=1)
    ]
    tiles: list[Tile] = []
    if len(image.tiles) > 1 or width != height:
        tiles = [
            Tile(tag, data_url(_tile_picture(tile)))
            for tile, tag in zip(image.tiles, image.tags, strict=True)
        ]
    return Figure(
        picture=data_url(picture),
        shown_width=max(shown_width, 1),
        columns=columns,
        rows=rows,
        cells=cells,
        caption=describe_image(image) if number is None else f"{number}: {describe_image(image)}",
        tiles=tiles[:num_cells],
        thumbnail=tiles[-1] if image.has_thumbnail else None,
    )


def _label(tag: str, place: int) -> str:
    """What tells a tile's tag from those of the other tiles, or its place where it has no tag."""
    if tag.startswith("<box>"):
        return tag.rpartition("<box>")[2].partition(")")[0].strip(" (")
    # Behind those of tiles that are left out.
    return tag.rpartition("<tile_")[2].removesuffix(">") or str(place)


def _whole_picture(image: ShownImage) -> Image.Image:
    """Put together from the tiles, at the stored image's aspect ratio; padding at the tiles'."""
    columns, rows = image.grid
    size = image.tiles.shape[-1]
    grid = image.tiles[: columns * rows].reshape(rows, columns, 3, size, size)
    pixels = grid.transpose(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)
    width, height = (columns * size, rows * size) if image.is_padded else image.size or (size, size)
    scale = min(1.0, _PICTURE_SIDE / max(width, height))
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(shape, Image.Resampling.LANCZOS)


def _tile_picture(tile: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(tile.transpose(1, 2, 0)))
    side = min(_TILE_SIDE, picture.width)
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def data_url(picture: Image.Image) -> str:
    """As PNG where there are few colours, which keeps drawings sharp and small, else as JPEG."""
    kind = "jpeg" if picture.getcolors(_FEW_COLOURS) is None else "png"
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": _JPEG_QUALITY} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
