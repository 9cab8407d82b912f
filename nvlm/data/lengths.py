"""Planned lengths: what the stage's settings make of the samples of an index, before any is read.

A sample that is too long for `stage.sequence_length` or the tile budget gets fewer tiles per image,
down to one; then it loses whole trailing turns, never the first; what is still too long does not
fit. No image is ever cut. Computed for the rows asked for only, so that a source may be of any
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.config import RunConfig
from nvlm.config.schema import SourceConfig
from nvlm.data.index import SourceIndex
from nvlm.data.tiling import count_tiles


@dataclass(frozen=True)
class RowPlans:
    """Plans of n draws; every field is an array [n]."""

    lengths: NDArray[np.int64]  # tokens
    num_tiles: NDArray[np.int64]  # tiles of all images
    max_num_tiles: NDArray[np.int64]  # most tiles per image; fewer than the source's if too long
    num_turns: NDArray[np.int64]  # turns kept: a question and its answer, or a document's part
    variants: NDArray[np.int64]  # which of the sample's prompts and answers is used
    fits: NDArray[np.bool_]  # False: leave the sample out, reason `too_long`
    shortened_tiles: NDArray[np.bool_]  # fits with fewer tiles than it would have
    cut_turns: NDArray[np.bool_]  # fits without its last turns


class PlannedSource:
    """A source of the run with its settings; plans draws of its samples."""

    def __init__(self, config: RunConfig, settings: SourceConfig, index: SourceIndex):
        self.index = index
        self.settings = settings
        self.max_num_tiles = settings.max_num_tiles or config.stage.max_num_tiles
        self._seed = config.train.seed
        self._stage, self._vision = config.stage, config.model.vision
        self._tags_after_first = np.array(
            [0] + [index.tag_lengths.num_tokens_after_first(tiles, config.stage.use_thumbnail)
                   for tiles in range(1, self.max_num_tiles + 2)]
        )  # fmt: skip

    def plan(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> RowPlans:
        """Plans of the draws of `rows` [n] in their source's passes `epochs` [n], from 0."""
        num_draws = len(rows)
        starts, stops = self.index.image_starts[rows], self.index.image_starts[rows + 1]
        owner = np.repeat(np.arange(num_draws), stops - starts)
        images = _ranges(starts, stops)
        widths, heights = self.index.image_width[images], self.index.image_height[images]
        max_tiles_per_sequence = self._stage.max_tiles_per_sequence or np.iinfo(np.int64).max

        max_num_tiles = np.zeros(num_draws, np.int64)
        num_tiles = np.zeros(num_draws, np.int64)
        lengths = np.zeros(num_draws, np.int64)
        pending = np.ones(num_draws, np.bool_)
        for limit in range(self.max_num_tiles, 0, -1):
            tiles = self._count_tiles(widths, heights, limit)
            lead = np.where(
                tiles == 1, self.index.lead_single[images], self.index.lead_multiple[images]
            )
            tokens = lead + self._tags_after_first[tiles] + tiles * self._vision.num_tokens_per_tile
            new_lengths = self.index.num_text_tokens[rows] + _sums(tokens, owner, num_draws)
            new_num_tiles = _sums(tiles, owner, num_draws)
            lengths[pending], num_tiles[pending] = new_lengths[pending], new_num_tiles[pending]
            max_num_tiles[pending] = limit
            pending = (lengths > self._stage.sequence_length) | (num_tiles > max_tiles_per_sequence)
            if not pending.any():
                break
        return RowPlans(
            lengths=lengths,
            num_tiles=num_tiles,
            max_num_tiles=max_num_tiles,
            num_turns=np.ones(num_draws, np.int64),
            variants=np.zeros(num_draws, np.int64),
            fits=~pending,
            shortened_tiles=~pending & (max_num_tiles < self.max_num_tiles),
            cut_turns=np.zeros(num_draws, np.bool_),
        )

    def tiles_per_image(self, row: int, max_num_tiles: int, num_turns: int) -> list[int]:
        """Tiles of each image that a plan keeps."""
        images = slice(self.index.image_starts[row], self.index.image_starts[row + 1])
        widths, heights = self.index.image_width[images], self.index.image_height[images]
        return self._count_tiles(widths, heights, max_num_tiles).tolist()

    def too_long(self, row: int, length: int, num_tiles: int) -> str:
        """Why a plan does not fit, for the user."""
        return (
            f"{length} tokens and {num_tiles} tiles at one tile per image, for "
            f"stage.sequence_length {self._stage.sequence_length} and "
            f"stage.max_tiles_per_sequence {self._stage.max_tiles_per_sequence}"
        )

    def _count_tiles(self, widths: NDArray, heights: NDArray, limit: int) -> NDArray[np.int64]:
        return count_tiles(
            widths, heights, limit, self._stage.use_thumbnail, self._vision.image_size
        )


def _ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranges `starts[i]` to `stops[i]`, one range after the other."""
    sizes = stops - starts
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(sizes.sum())


def _sums(values: NDArray, owner: NDArray, num_owners: int) -> NDArray[np.int64]:
    return np.bincount(owner, weights=values, minlength=num_owners).astype(np.int64)
