"""What an image's grid of tiles becomes: how many tiles, their text tags, and how many tokens.

What of it stands in the decoder's sequence and what the decoder reads beside it (by
cross-attention) is `model.fusion`'s matter, and `model.deepstack`'s:

    decoder_only      in the sequence: every tile's tag and placeholders
    cross_attention   in the sequence: every tile's tag; beside: every tile's tokens
    hybrid            in the sequence: tag and placeholders of the thumbnail, or of the only tile;
                      beside: every other tile's tag and tokens
    deepstack: tiles  in the sequence: the same; every other tile's tokens are added to those of
                      the thumbnail behind decoder layers, and their tags stand nowhere

Whoever counts tiles or image tokens asks here. Tags tell the language model which tile comes next
(paper section 4.2, table 1):

    none       no tags
    1d         <tile_1> <tile_2> ...                      the design of the released model
    2d_grid    <tile_x0_y0> <tile_x1_y0> ...              column and row of the tile
    2d_box     <box> (0, 0), (448, 448) </box> ...        its pixels in the resized image
    soft       no text: some learned vectors for each     numbers as of 1d, and the thumbnail

The thumbnail, and the tile of an image that is one tile, have `<tile_global_thumbnail>`. Numbers
of tiles have as many digits as the stage's largest, and the thumbnail's tag of 1-D grows with them
(`<tile_01>`, `<tile_global_thumbnail0>` from ten tiles on): with Qwen2's tokenizer all tags of a
model with 1-D tags have equally many tokens, and so have the tiles' of a grid. Nothing counts on
that: others, such as Llama 3's, make one token of several digits. Boxes are pixels as they are. No
tag is the beginning of another.

With `stage.tiling: pad_skip` a grid has the tiles that are left of the square around it; the tags
of those that are left out stand where the tiles would, without tokens behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nvlm.config.schema import Fusion, RunConfig
from nvlm.config.tiles import TileTags, Tiling, with_thumbnail
from nvlm.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    # One image's number, or an array with one per image.
    Number = TypeVar("Number", int, NDArray[np.int64])

# (columns, rows) of an image's tiles.
Grid = tuple[int, int]


@dataclass(frozen=True)
class VisualLayout:
    """How a stage lays images out for its model. Tiles and tokens are counted for ints and arrays.

    The two numbers of tokens do not count tags: an index measures those with the tokenizer.
    """

    tile_tags: TileTags
    use_thumbnail: bool
    max_num_tiles: int  # of a grid, in the whole stage
    image_size: int  # pixels of a tile's side
    # Each takes the place of a placeholder, in the decoder's sequence or beside it.
    num_tokens_per_tile: int
    fusion: Fusion = "decoder_only"
    tiling: Tiling = "stretch"
    # With `tile_tags: soft`: vectors of each tag, and the first one's number among all tokens.
    num_soft_tag_tokens: int = 0
    first_soft_id: int = 0
    # With `stage.alignment`: how many levels there are, and whether a gate mixes them. Their first
    # number is that of soft tags, with which they do not go.
    num_alignment_levels: int = 0
    mixes_levels: bool = False
    stacks_tiles: bool = False  # `model.deepstack: tiles`

    @classmethod
    def from_config(cls, config: RunConfig) -> VisualLayout:
        stage, vision = config.stage, config.model.vision
        alignment = stage.alignment
        return cls(
            tile_tags=stage.tile_tags,
            use_thumbnail=stage.use_thumbnail,
            max_num_tiles=stage.max_num_tiles,
            image_size=vision.image_size,
            num_tokens_per_tile=config.model.num_tokens_per_tile,
            fusion=config.model.fusion,
            tiling=stage.tiling,
            num_soft_tag_tokens=stage.num_soft_tag_tokens if stage.has_soft_tags else 0,
            first_soft_id=config.model.language.vocab_size,
            num_alignment_levels=0 if alignment is None else alignment.num_levels,
            mixes_levels=stage.mixes_levels,
            stacks_tiles=config.model.stacks_tiles,
        )

    # ------------------------------------------------------------------------------ tiles, tokens

    def num_tiles(self, grid: tuple[Number, Number]) -> Number:
        """Tiles of an image, the thumbnail counted. One tile never gets a thumbnail."""
        columns, rows = grid
        return with_thumbnail(columns * rows, self.use_thumbnail)

    def has_thumbnail(self, grid: Grid) -> bool:
        return self.num_tiles(grid) > grid[0] * grid[1]

    def stacked(self, grids: Sequence[Grid]) -> tuple[Grid, ...]:
        """Those whose tiles are added to their thumbnails: all, or none.

        Raises:
            DataError: one has more tiles than decoder layers were trained with.
        """
        if not self.stacks_tiles:
            return ()
        for columns, rows in grids:
            if columns * rows > self.max_num_tiles:
                raise DataError(
                    f"an image in {columns} x {rows} tiles: with model.deepstack tiles a decoder "
                    f"layer adds one part of each, of stage.max_num_tiles {self.max_num_tiles} at "
                    "most; cut it into fewer"
                )
        return (*grids,)

    def num_stacked_on(self, grids: Sequence[Grid], num_tiles: int, samples: str) -> int:
        """Tiles in the sequence, to which the others of so many are added: one of each image.

        Raises:
            DataError: these are not the tiles of the images.
        """
        if (found := sum(map(self.num_tiles, grids))) != num_tiles:
            raise DataError(
                f"{num_tiles} tiles for images of {found}, in grids {list(grids)}, in samples "
                f"{samples}"
            )
        return len(grids)

    @property
    def max_tiles_per_image(self) -> int:
        """Most tiles an image becomes, the thumbnail counted."""
        return self.num_tiles((self.max_num_tiles, 1))

    def num_tiles_inside(self, num_tiles: Number, num_images: Number) -> Number:
        """Tiles of so many images, all of them together, that the decoder's sequence holds."""
        if self.holds_thumbnails:  # or the only tile
            return num_images + num_tiles * 0
        return num_tiles if self.fusion == "decoder_only" else num_tiles * 0

    @property
    def holds_thumbnails(self) -> bool:
        """See `ModelConfig.holds_thumbnails`."""
        return self.fusion == "hybrid" or self.stacks_tiles

    @property
    def tiles_take_room(self) -> bool:
        """Whether every tile's tokens are in the decoder's sequence: fewer make it shorter.

        Tags alone, of NVLM-X, do not count: they are a fiftieth of that.
        """
        return self.fusion == "decoder_only" and not self.stacks_tiles

    def tiles_beside(self, grid: Grid) -> range:
        """Which of an image's tiles the decoder reads beside its sequence."""
        num_tiles = 0 if self.fusion == "decoder_only" else self.num_tiles(grid)
        return range(num_tiles - self.num_tiles_inside(num_tiles, 1))

    def num_tokens(self, num_tiles: Number, num_images: Number) -> Number:
        """Placeholders in the decoder's sequence of so many tiles, which are of so many images."""
        return self.num_tiles_inside(num_tiles, num_images) * self.num_tokens_per_tile

    def num_tokens_beside(self, num_tiles: Number, num_images: Number) -> Number:
        """Tokens of such tiles that the decoder reads beside its sequence."""
        if self.fusion == "decoder_only":
            return num_tiles * 0
        return num_tiles * self.num_tokens_per_tile - self.num_tokens(num_tiles, num_images)

    def num_fitting_tiles(self, num_tokens: int, budget: int | None = None) -> int:
        """Tiles that so many tokens have room for, tags not counted, and at most `budget`.

        Without placeholders a sequence has room for any number: such a stage has a budget (config/
        model_checks.py).
        """
        fitting = num_tokens // self.num_tokens_per_tile
        if self.holds_thumbnails:
            fitting *= self.max_tiles_per_image
        elif self.fusion == "cross_attention":
            fitting = num_tokens * self.max_tiles_per_image
        return fitting if budget is None else min(fitting, budget)

    # --------------------------------------------------------------------------------------- tags

    @property
    def num_tag_digits(self) -> int:
        """Digits of the numbers in tags."""
        largest = self.max_num_tiles if self.tile_tags == "1d" else self.max_num_tiles - 1
        return len(str(largest))

    def tags(self, grid: Grid) -> list[str]:
        """The text of one tag per tile, row by row, the thumbnail's last."""
        if self.tile_tags in ("none", "soft"):
            return [""] * self.num_tiles(grid)
        if self.stacks_tiles:
            return [""] * (self.num_tiles(grid) - 1) + [self._thumbnail_tag()]
        return self._in_tiles(grid, self._tile_tag, self._thumbnail_tag(), "")

    @property
    def has_text_tags(self) -> bool:
        return self.tile_tags not in ("none", "soft")

    def soft_tags(self, grid: Grid) -> list[tuple[int, ...]]:
        """The tokens of one learned tag per tile, in the order of `tags`; none without."""
        if not self.num_soft_tag_tokens:
            return [()] * self.num_tiles(grid)
        return self._in_tiles(grid, self._soft_tile_tag, self._soft_tag(0), ())

    def check_soft_tags(self, grid: Grid) -> None:
        """Raise `DataError` for a grid with tiles whose tag was not learned."""
        last = max((token for tag in self.soft_tags(grid) for token in tag), default=0)
        if self.num_soft_tag_tokens and last >= self.first_soft_id + self.num_soft_tag_tokens * (
            self.max_num_tiles + 1
        ):
            raise DataError(
                f"an image in {grid[0]} x {grid[1]} tiles: tags were learned for "
                f"stage.max_num_tiles {self.max_num_tiles}; cut it into fewer"
            )

    def alignment_token(self, level: int | None) -> int:
        """Of the vector at a document's beginning; None, and with a gate: of the highest level."""
        highest = self.num_alignment_levels - 1
        return self.first_soft_id + (highest if level is None or self.mixes_levels else level)

    def learned_name(self, token: int) -> str:
        """How a token behind the vocabulary's is shown."""
        if self.num_alignment_levels:
            level = token - self.first_soft_id
            return "<alignment>" if self.mixes_levels else f"<alignment_level_{level}>"
        return self._soft_tag_name(token)

    def _soft_tag_name(self, token: int) -> str:
        number, place = divmod(token - self.first_soft_id, self.num_soft_tag_tokens)
        tag = f"soft_tile_{number}" if number else "soft_thumbnail"
        return f"<{tag}>" if self.num_soft_tag_tokens == 1 else f"<{tag}_{place + 1}>"

    def _in_tiles(
        self, grid: Grid, tag_of: Callable[[int, int, int], Any], thumbnail: Any, nothing: Any
    ) -> list[Any]:
        """As texts or as tokens; those of tiles that are left out stand before the next one's."""
        if grid == (1, 1):
            return [thumbnail]
        tags, before = [], nothing
        for tag, is_left_out in self._cells(grid, tag_of):
            if is_left_out:
                before += tag
            else:
                tags.append(before + tag)
                before = nothing
        return [*tags, before + thumbnail] if self.has_thumbnail(grid) else tags

    def _cells(
        self, grid: Grid, tag_of: Callable[[int, int, int], Any]
    ) -> Iterator[tuple[Any, bool]]:
        """The tag of each tile that the grid is cut into, and whether that tile is left out."""
        columns, rows = grid
        is_square = self.tiling == "pad_skip"
        all_columns, all_rows = (max(grid), max(grid)) if is_square else grid
        for y in range(all_rows):
            for x in range(all_columns):
                yield tag_of(x, y, all_columns), x >= columns or y >= rows

    def may_be(self, grid: Grid, max_num_tiles: int) -> bool:
        """Whether an image cut into at most so many tiles can have this grid."""
        if self.tiling == "stretch":
            return grid[0] * grid[1] <= max_num_tiles
        return max(grid) ** 2 <= max_num_tiles

    def tags_inside(self, grid: Grid) -> list[str]:
        """Those tags that stand in the decoder's sequence; at least one."""
        return self.tags(grid)[-1:] if self.holds_thumbnails else self.tags(grid)

    def tags_beside(self, grid: Grid) -> list[str]:
        """One per tile beside: its tag where that stands before its tokens there, else ""."""
        tags = self.tags(grid) if self.fusion == "hybrid" else [""] * self.num_tiles(grid)
        return [tags[tile] for tile in self.tiles_beside(grid)]

    def _tile_tag(self, x: int, y: int, columns: int) -> str:
        """The tag of the tile in column `x` and row `y`, from 0, of a grid with `columns`."""
        match self.tile_tags:
            case "none" | "soft":
                return ""
            case "1d":
                return f"<tile_{y * columns + x + 1:0{self.num_tag_digits}}>"
            case "2d_grid":
                digits = self.num_tag_digits
                return f"<tile_x{x:0{digits}}_y{y:0{digits}}>"
            case "2d_box":
                left, top, size = x * self.image_size, y * self.image_size, self.image_size
                return f"<box> ({left}, {top}), ({left + size}, {top + size}) </box>"

    def _soft_tile_tag(self, x: int, y: int, columns: int) -> tuple[int, ...]:
        return self._soft_tag(y * columns + x + 1)

    def _soft_tag(self, number: int) -> tuple[int, ...]:
        """Of tile `number`, from 1; 0 is the thumbnail, or the tile that shows all of an image."""
        size = self.num_soft_tag_tokens
        first = self.first_soft_id + number * size
        return (*range(first, first + size),)

    def _thumbnail_tag(self) -> str:
        """The tag of a tile that shows all of an image."""
        if self.tile_tags == "1d":
            return f"<tile_global_thumbnail{'0' * (self.num_tag_digits - 1)}>"
        return "<tile_global_thumbnail>"
