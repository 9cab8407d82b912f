"""Text tags that tell the language model which tile comes next (paper section 4.2, table 1).

    none       no tags
    1d         <tile_1> <tile_2> ...                      the design of the released model
    2d_grid    <tile_x0_y0> <tile_x1_y0> ...              column and row of the tile
    2d_box     <box> (0, 0), (448, 448) </box> ...        its pixels in the resized image

The thumbnail, and the tile of an image that is one tile, have `<tile_global_thumbnail>`. Numbers
of tiles have as many digits as the stage's largest, and the thumbnail's tag of 1-D grows with them
(`<tile_01>`, `<tile_global_thumbnail0>` from ten tiles on): with Qwen2's tokenizer all tags of a
model with 1-D tags have equally many tokens, and so have the tiles' of a grid. Boxes are pixels as
they are. No tag is the beginning of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvlm.config import RunConfig

IMAGE_START = "<Image>"
IMAGE_END = "</Image>"

TileTags = Literal["none", "1d", "2d_grid", "2d_box"]
# (columns, rows) of an image's tiles.
Grid = tuple[int, int]


@dataclass(frozen=True)
class TagStyle:
    """How a stage tags its tiles."""

    tile_tags: TileTags
    use_thumbnail: bool
    max_num_tiles: int  # of a grid, in the whole stage
    image_size: int  # pixels of a tile's side

    @classmethod
    def from_config(cls, config: RunConfig) -> TagStyle:
        stage, image_size = config.stage, config.model.vision.image_size
        return cls(stage.tile_tags, stage.use_thumbnail, stage.max_num_tiles, image_size)

    @property
    def num_digits(self) -> int:
        """Digits of the numbers in tags."""
        largest = self.max_num_tiles if self.tile_tags == "1d" else self.max_num_tiles - 1
        return len(str(largest))

    def num_tiles(self, grid: Grid) -> int:
        """Tiles of an image, the thumbnail counted. One tile never gets a thumbnail."""
        tiles = grid[0] * grid[1]
        return tiles + 1 if self.use_thumbnail and tiles > 1 else tiles

    def tags(self, grid: Grid) -> list[str]:
        """One tag per tile, row by row, the thumbnail's last."""
        if self.tile_tags == "none":
            return [""] * self.num_tiles(grid)
        columns, rows = grid
        if columns * rows == 1:
            return [self.thumbnail()]
        tags = [self.tile(x, y, columns) for y in range(rows) for x in range(columns)]
        return [*tags, self.thumbnail()] if self.use_thumbnail else tags

    def tile(self, x: int, y: int, columns: int) -> str:
        """The tag of the tile in column `x` and row `y`, from 0, of a grid with `columns`."""
        match self.tile_tags:
            case "none":
                return ""
            case "1d":
                return f"<tile_{y * columns + x + 1:0{self.num_digits}}>"
            case "2d_grid":
                digits = self.num_digits
                return f"<tile_x{x:0{digits}}_y{y:0{digits}}>"
            case "2d_box":
                left, top, size = x * self.image_size, y * self.image_size, self.image_size
                return f"<box> ({left}, {top}), ({left + size}, {top + size}) </box>"

    def thumbnail(self) -> str:
        """The tag of a tile that shows all of an image."""
        match self.tile_tags:
            case "none":
                return ""
            case "1d":
                return f"<tile_global_thumbnail{'0' * (self.num_digits - 1)}>"
            case _:
                return "<tile_global_thumbnail>"
