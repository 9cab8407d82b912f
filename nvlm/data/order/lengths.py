"""Planned lengths: what the stage's settings make of the samples of an index, before any is read.

A sample that is too long for `stage.sequence_length` or the tile budget gets fewer tiles per image,
down to one; then it loses whole trailing turns (parts, of a document), never the first; what is
still too long, or has no turn left that is trained, does not fit. No image is ever cut. Tiles that
the decoder reads beside its sequence take no room in it: only the tile budget makes them fewer.

A sample with several prompts or answers is used with one of them, drawn by its weights from a hash
of (train.seed, source, key, pass over the source): the same wherever and whenever it is planned.

Computed for the rows asked for only, so that a source may be of any size. Shapes: n draws, m images
of these, k turns of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.config import RunConfig
from nvlm.config.schema import SourceConfig
from nvlm.config.values import MAX_NUM_TILES
from nvlm.data.images.tiling import choose_grids
from nvlm.data.index.column_types import hash_key
from nvlm.data.index.source_index import SourceIndex
from nvlm.data.order.draws import Draws, PlannedDraws
from nvlm.sizes.visual import Grid, VisualLayout


@dataclass(frozen=True)
class DrawTokens:
    """What becomes of the tokens of n planned draws; every field is an array [n]."""

    num_images: NDArray[np.int64]  # kept
    num_trained: NDArray[np.int64]  # tokens that the loss counts
    lost_tiles: NDArray[np.int64]  # tokens fewer because of fewer tiles
    lost_turns: NDArray[np.int64]  # and then because of turns that are cut


class PlannedSource:
    """A source of the run with its settings; plans draws of its samples."""

    def __init__(self, config: RunConfig, settings: SourceConfig, index: SourceIndex):
        self.index = index
        self.settings = settings
        self.max_num_tiles = settings.max_num_tiles or config.stage.max_num_tiles
        self._stage, self._visual = config.stage, VisualLayout.from_config(config)
        self._max_tokens = config.stage.sequence_length
        self._max_tiles = config.stage.max_tiles_per_sequence or np.iinfo(np.int64).max
        self._salt = hash_key(f"{config.train.seed}/{index.source}")
        # [columns, rows] of a grid -> tokens of its tags but the first.
        self._later_tags = np.zeros((MAX_NUM_TILES + 1,) * 2, np.int64)
        for (columns, rows), tokens in index.tag_lengths.items():
            self._later_tags[columns, rows] = tokens

    def plan(self, draws: Draws) -> PlannedDraws:
        """The same draws, which are of this source, with their plans."""
        rows = draws.row
        variants, first_turns = self._choose(rows, draws.epoch)
        all_turns = self.index.turn_starts[rows + 1] - self.index.turn_starts[rows]
        num_turns = all_turns.copy()
        max_num_tiles = np.zeros_like(rows)
        lengths, num_tiles = np.zeros_like(rows), np.zeros_like(rows)
        pending = np.arange(len(rows))
        for limit in range(self.max_num_tiles, 0, -1):
            tokens, tiles, ends = self._accumulate(rows[pending], first_turns[pending], limit)
            lengths[pending], num_tiles[pending] = tokens[ends], tiles[ends]
            max_num_tiles[pending] = limit
            pending = pending[self._needs_fewer_tiles(lengths[pending], num_tiles[pending])]
            if not len(pending):
                break
        has_trained = np.ones(len(rows), np.bool_)
        too_long = self._too_long(lengths, num_tiles)
        for limit in np.unique(max_num_tiles[too_long]).tolist():
            pending = np.flatnonzero(too_long & (max_num_tiles == limit))
            # Whole turns from the end.
            tokens, tiles, ends = self._accumulate(rows[pending], first_turns[pending], limit)
            starts = ends + 1 - num_turns[pending]
            kept = np.add.reduceat(~self._too_long(tokens, tiles), starts, dtype=np.int64)
            num_turns[pending] = np.maximum(kept, 1)
            last = starts + num_turns[pending] - 1
            lengths[pending], num_tiles[pending] = tokens[last], tiles[last]
            # Those that are left may be context alone.
            has_trained[pending] = self._count_trained(rows[pending], num_turns[pending]) > 0
        fits = has_trained & ~self._too_long(lengths, num_tiles)
        has_images = self.index.image_starts[rows + 1] > self.index.image_starts[rows]
        return PlannedDraws(
            **vars(draws),
            length=lengths,
            num_tiles=num_tiles,
            max_num_tiles=max_num_tiles,
            num_turns=num_turns,
            variant=variants,
            fits=fits,
            shortened_tiles=fits & has_images & (max_num_tiles < self.max_num_tiles),
            cut_turns=fits & (num_turns < all_turns),
        )

    def account(self, draws: PlannedDraws) -> DrawTokens:
        """What planned draws of this source keep, train and lose, for statistics."""
        rows, num_turns, max_num_tiles = draws.row, draws.num_turns, draws.max_num_tiles
        index = self.index
        has_choices = index.choice_starts[rows + 1] > index.choice_starts[rows]
        choices = np.where(has_choices, index.choice_starts[rows] + draws.variant, 0)
        starts = index.turn_starts[rows]
        kept = _ranges(starts, starts + num_turns)
        owner = np.repeat(np.arange(len(rows)), num_turns)
        num_trained = self._count_trained(rows, num_turns)
        first_turns = index.turn_tokens[starts].astype(np.int64)
        if has_choices.any():
            # Such samples have one turn.
            num_trained = np.where(has_choices, index.choice_trained[choices], num_trained)
            first_turns = np.where(has_choices, index.choice_tokens[choices], first_turns)

        whole, shortened = np.zeros_like(rows), np.zeros_like(rows)
        for limit in {self.max_num_tiles, *max_num_tiles.tolist()}:
            tokens, _, ends = self._accumulate(rows, first_turns, limit)
            whole = tokens[ends] if limit == self.max_num_tiles else whole
            shortened = np.where(max_num_tiles == limit, tokens[ends], shortened)
        return DrawTokens(
            num_images=_sums(index.turn_images[kept], owner, len(rows)),
            num_trained=num_trained,
            lost_tiles=whole - shortened,
            lost_turns=shortened - draws.length,
        )

    def grids(self, row: int, max_num_tiles: int, num_turns: int) -> list[Grid]:
        """(columns, rows) of each image that a plan keeps."""
        first = self.index.turn_starts[row]
        num_images = int(self.index.turn_images[first : first + num_turns].sum())
        start = self.index.image_starts[row]
        columns, rows = self._choose_grids(np.arange(start, start + num_images), max_num_tiles)
        return list(zip(columns.tolist(), rows.tolist(), strict=True))

    def too_long(self, row: int, length: int, num_tiles: int) -> str:
        """Why a plan does not fit, for the user."""
        del row
        if not self._too_long(np.array(length), np.array(num_tiles)):
            return (
                f"no turn of those that fit stage.sequence_length {self._max_tokens} and "
                f"stage.max_tiles_per_sequence {self._stage.max_tiles_per_sequence} is trained"
            )
        least = " at one tile per image" if self._visual.tiles_take_room else ""
        return (
            f"its first turn has {length} tokens and {num_tiles} tiles{least}, for "
            f"stage.sequence_length {self._max_tokens} and "
            f"stage.max_tiles_per_sequence {self._stage.max_tiles_per_sequence}"
        )

    def _too_long(self, lengths: NDArray, num_tiles: NDArray) -> NDArray[np.bool_]:
        return (lengths > self._max_tokens) | (num_tiles > self._max_tiles)

    def _needs_fewer_tiles(self, lengths: NDArray, num_tiles: NDArray) -> NDArray[np.bool_]:
        if self._visual.tiles_take_room:
            return self._too_long(lengths, num_tiles)
        return num_tiles > self._max_tiles

    def _count_trained(self, rows: NDArray, num_turns: NDArray) -> NDArray[np.int64]:
        """[n] trained tokens of the first turns of `rows`, for samples without choices."""
        starts = self.index.turn_starts[rows]
        kept = _ranges(starts, starts + num_turns)
        owner = np.repeat(np.arange(len(rows)), num_turns)
        return _sums(self.index.turn_trained[kept], owner, len(rows))

    def _choose(self, rows: NDArray, epochs: NDArray) -> tuple[NDArray, NDArray]:
        """(which choice, tokens of the first turn with it), each [n]."""
        index = self.index
        starts, stops = index.choice_starts[rows], index.choice_starts[rows + 1]
        first_turns = index.turn_tokens[index.turn_starts[rows]].astype(np.int64)
        variants = np.zeros_like(rows)
        several = np.flatnonzero(stops > starts)
        if len(several) == 0:
            return variants, first_turns
        starts, stops = starts[several], stops[several]
        hashes = _mix(index.key_hash[rows[several]] ^ np.uint64(self._salt))
        hashes = _mix(hashes ^ epochs[several].astype(np.uint64))
        shares = (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53
        # The first choice whose summed weight exceeds the share of all weights.
        flat = _ranges(starts, stops)
        sizes = stops - starts
        ends = np.cumsum(sizes) - 1
        summed = np.cumsum(index.choice_weight[flat].astype(np.float64))
        before = np.concatenate([[0.0], summed[ends[:-1]]])
        wanted = before + shares * (summed[ends] - before)
        variants[several] = np.minimum(np.searchsorted(summed, wanted, "right"), ends)
        variants[several] -= ends + 1 - sizes
        first_turns[several] = index.choice_tokens[starts + variants[several]]
        return variants, first_turns

    def _accumulate(
        self, rows: NDArray, first_turns: NDArray, max_num_tiles: int
    ) -> tuple[NDArray, NDArray, NDArray]:
        """(tokens, tiles) up to and with each turn of the draws, and each draw's last turn.

        Args:
            first_turns: [n] tokens of the draws' first turns.
            max_num_tiles: per image, for all of them.
        """
        index = self.index
        starts, stops = index.turn_starts[rows], index.turn_starts[rows + 1]
        turns = _ranges(starts, stops)
        ends = np.cumsum(stops - starts) - 1
        firsts = ends + 1 - (stops - starts)
        text = index.turn_tokens[turns].astype(np.int64)
        text[firsts] = first_turns

        images = _ranges(index.image_starts[rows], index.image_starts[rows + 1])
        turn_of_image = np.repeat(np.arange(len(turns)), index.turn_images[turns])
        columns, grid_rows = self._choose_grids(images, max_num_tiles)
        tiles = self._visual.num_tiles((columns, grid_rows))
        leads = np.where(
            columns * grid_rows == 1, index.lead_single[images], index.lead_multiple[images]
        )
        tokens = leads + self._later_tags[columns, grid_rows]
        tokens += self._visual.num_tokens(tiles, np.ones_like(tiles))
        return (
            _sum_within(text + _sums(tokens, turn_of_image, len(turns)), firsts),
            _sum_within(_sums(tiles, turn_of_image, len(turns)), firsts),
            ends,
        )

    def _choose_grids(self, images: NDArray, max_num_tiles: int) -> tuple[NDArray, NDArray]:
        widths, heights = self.index.image_width[images], self.index.image_height[images]
        visual = self._visual
        return choose_grids(widths, heights, max_num_tiles, visual.image_size, visual.tiling)


def _ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranges `starts[i]` to `stops[i]`, one range after the other."""
    sizes = stops - starts
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(sizes.sum())


def _sums(values: NDArray, owner: NDArray, num_owners: int) -> NDArray[np.int64]:
    return np.bincount(owner, weights=values, minlength=num_owners).astype(np.int64)


def _sum_within(values: NDArray[np.int64], firsts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Running sums that start over at each of `firsts`."""
    summed = np.cumsum(values)
    sizes = np.diff(np.append(firsts, len(values)))
    return summed - np.repeat(summed[firsts] - values[firsts], sizes)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of the result depends on every bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
