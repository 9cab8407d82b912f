"""The images of the preview page, put together from the tiles that the model gets."""

from __future__ import annotations

import base64
import html
import io

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


def image_figures(image: ShownImage, number: int | None = None) -> str:
    """The image with its grid drawn over it, and its tiles; `number` if there are several."""
    columns, rows = image.grid
    picture = _whole_picture(image)
    width, height = picture.size
    shown_width = min(max(width, _MIN_SHOWN_WIDTH), width * _MAX_SHOWN_HEIGHT // height)
    cells = "".join(
        f'<span title="{html.escape(tag)}">'
        f"{f'<b>{_label(tag, place)}</b>' if columns * rows > 1 else ''}</span>"
        for place, tag in enumerate(image.tags[: columns * rows], start=1)
    )
    caption = describe_image(image) if number is None else f"{number}: {describe_image(image)}"
    whole = (
        f'<figure><div class="frame"><img src="{_data_uri(picture)}" alt="" '
        f'style="width:{max(shown_width, 1)}px"><div class="over" '
        f'style="grid-template:repeat({rows},1fr)/repeat({columns},1fr)">{cells}</div></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
    if len(image.tiles) == 1 and width == height:
        return whole  # the picture is the tile
    tiles = [
        f'<img src="{_data_uri(_tile_picture(tile))}" alt="{html.escape(tag)}" '
        f'title="{html.escape(tag)}" width="{_TILE_SIDE}" height="{_TILE_SIDE}">'
        for tile, tag in zip(image.tiles, image.tags, strict=True)
    ]
    grid = f'<div class="grid" style="--columns:{columns}">{"".join(tiles[: columns * rows])}</div>'
    thumbnail = f'<div class="grid">{tiles[-1]}</div>' if image.has_thumbnail else ""
    what = "the tile" if len(tiles) == 1 else "the tiles"
    return (
        f'<div class="image">{whole}<figure><div class="tiles">{grid}{thumbnail}</div>'
        f"<figcaption>{what} as the model gets {'it' if len(tiles) == 1 else 'them'}</figcaption>"
        "</figure></div>"
    )


def _label(tag: str, place: int) -> str:
    """What tells a tile's tag from those of the other tiles, or its place where it has no tag."""
    if tag.startswith("<box>"):
        return html.escape(tag.removeprefix("<box>").partition(")")[0].strip(" ("))
    return html.escape(tag.removeprefix("<tile_").removesuffix(">")) or str(place)


def _whole_picture(image: ShownImage) -> Image.Image:
    """Put together from the tiles, at the stored image's aspect ratio."""
    columns, rows = image.grid
    size = image.tiles.shape[-1]
    grid = image.tiles[: columns * rows].reshape(rows, columns, 3, size, size)
    pixels = grid.transpose(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)
    width, height = image.size or (size, size)
    scale = min(1.0, _PICTURE_SIDE / max(width, height))
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(shape, Image.Resampling.LANCZOS)


def _tile_picture(tile: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(tile.transpose(1, 2, 0)))
    side = min(_TILE_SIDE, picture.width)
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def _data_uri(picture: Image.Image) -> str:
    """As PNG where there are few colours, which keeps drawings sharp and small, else as JPEG."""
    kind = "jpeg" if picture.getcolors(_FEW_COLOURS) is None else "png"
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": _JPEG_QUALITY} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
