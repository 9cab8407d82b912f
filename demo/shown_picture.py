"""An image as the report shows it: inside the page, with the tiles that the model was given."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

from PIL import Image

# Pictures are shown at most this large; larger ones are shrunk and stored as JPEG.
_MAX_SIDE = 640
# The thumbnail tile is shown this wide.
_THUMBNAIL_SIDE = 84


@dataclass(frozen=True)
class Picture:
    """An image as the model sees it: cut into columns x rows tiles, tagged, thumbnail last."""

    data: bytes = field(repr=False)
    columns: int = 1
    rows: int = 1
    tags: list[str] = field(default_factory=list)  # one per tile, thumbnail included
    has_thumbnail: bool = False


@dataclass(frozen=True)
class ShownPicture:
    """Sizes in pixels of the page; images as data URIs."""

    source: str = field(repr=False)
    width: int
    height: int
    num_cells: int
    cell_prefix: str  # before each cell's number
    thumbnail: str = field(repr=False)  # empty where there is none
    thumbnail_side: int = _THUMBNAIL_SIDE


def show_picture(picture: Picture) -> ShownPicture:
    source, width, height = _data_uri(picture.data, _MAX_SIDE)
    # Small images (a digit is one tile) are enlarged so that a person can read them.
    shown_width = max(width, min(320, 160 * picture.columns)) if width < 320 else width
    has_room = min(shown_width, 320) / picture.columns >= 64
    thumbnail = ""
    if picture.has_thumbnail:
        thumbnail, _, _ = _data_uri(picture.data, _THUMBNAIL_SIDE, square=True)
    return ShownPicture(
        source=source,
        width=shown_width,
        height=round(height * shown_width / width),
        num_cells=picture.columns * picture.rows,
        # Each cell carries its tag, or its number alone where a card has no room for the tag.
        cell_prefix="tile_" if has_room else "",
        thumbnail=thumbnail,
    )


def _data_uri(data: bytes, max_side: int, square: bool = False) -> tuple[str, int, int]:
    """(data URI, width, height). `square`: squashed, as the thumbnail tile is."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if square:
        image = image.resize((max_side, max_side), Image.Resampling.BICUBIC)
    elif max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    # Drawn pages and digits have few colours: PNG keeps them small and sharp. Photographs: JPEG.
    few_colours = image.getcolors(maxcolors=4096) is not None
    if few_colours:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=88)
    kind = "png" if few_colours else "jpeg"
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{text}", *image.size
