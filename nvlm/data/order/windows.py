"""Windows: the endless stream of packs, drawn from the sources and packed window by window.

1. `data.packing_window` samples are drawn: which source is blend.py's matter, which of its samples
   permutation.py's.
2. Their lengths are planned from the index (lengths.py); what does not fit is left out, by name.
3. They are packed together with the samples carried over (packing.py); the emptiest packs are
   carried to the next window, the others are shuffled and go out.

A window is a function of the state before it, which is a few integers per source and the carried
samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.data.order.blend import Blend
from nvlm.data.order.lengths import PlannedSource
from nvlm.data.order.packing import choose_carried, pack_samples
from nvlm.data.order.permutation import SampleOrder, shuffled
from nvlm.errors import DataError


class Draw(NamedTuple):
    """One use of one sample, as planned."""

    source: int  # index into the stream's sources
    row: int  # of the source's index
    epoch: int  # pass over the source, from 0
    age: int  # windows that it was carried over
    length: int  # tokens
    num_tiles: int  # of all images
    max_num_tiles: int  # most tiles per image
    num_turns: int  # turns kept
    variant: int  # which prompt and answer
    fits: bool
    shortened_tiles: bool
    cut_turns: bool


@dataclass(frozen=True)
class Pack:
    """The samples of a sequence, in their order in it."""

    draws: list[Draw] = field(default_factory=list)
    # Drawn with them, but too long for any sequence.
    dropped: list[Draw] = field(default_factory=list)


class PackStream:
    """Windows of packs, one after another.

    Raises:
        DataError: a source has no samples.
    """

    def __init__(self, config: RunConfig, sources: list[PlannedSource]):
        self.sources = sources
        for source in sources:
            if len(source.index) == 0:
                raise DataError(_nothing_in(source))
        self._config = config
        self._blend = Blend(
            config.data,
            [source.index.source for source in sources],
            [len(source.index) for source in sources],
            [source.settings.max_epochs for source in sources],
        )
        # By name, not by number: the order within a source does not depend on the others.
        self._orders = [
            SampleOrder(len(source.index), config.train.seed, "samples", source.index.source)
            for source in sources
        ]
        self._number = 0
        self._carried: list[tuple[int, int, int, int]] = []  # (source, row, epoch, age)

    @property
    def num_drawn(self) -> list[int]:
        """Draws per source so far."""
        return self._blend.num_drawn

    def next_window(self) -> list[Pack] | None:
        """The packs of the next window; None when every source is used up.

        Raises:
            DataError: none of a whole window's samples fits a sequence.
        """
        drawn = self._draw()
        if not drawn and not self._carried:
            return None
        is_last = len(drawn) < self._config.data.packing_window
        planned = self._plan(self._carried + drawn)
        draws = [draw for draw in planned if draw.fits]
        dropped = [draw for draw in planned if not draw.fits]
        if not draws and (not is_last or self._number == 0):
            raise DataError(self._nothing_fits(dropped))
        packs = self._pack(draws, is_last) if draws else [Pack()]
        for number, draw in enumerate(dropped):
            packs[number % len(packs)].dropped.append(draw)
        self._number += 1
        return packs

    def state(self) -> dict:
        """Where the next window starts. JSON values only."""
        return {
            "number": self._number,
            "blend": self._blend.state(),
            "carried": [list(draw) for draw in self._carried],
        }

    def load_state(self, state: dict) -> None:
        self._number = state["number"]
        self._blend.load_state(state["blend"])
        self._carried = [tuple(draw) for draw in state["carried"]]

    def start_behind(self, num_drawn: list[int]) -> None:
        """Start with so many draws per source done, and nothing else."""
        self._number, self._carried = 0, []
        self._blend.start_behind(num_drawn)

    def place(self, num_draws: int) -> None:
        """Go to about where `num_draws` draws end; see `Blend.place`."""
        self._number = num_draws // self._config.data.packing_window
        self._blend.place(num_draws)
        self._carried = []

    def _draw(self) -> list[tuple[int, int, int, int]]:
        """The next window's draws, fewer than a window where the data end."""
        before = self._blend.num_drawn
        numbers = []
        while len(numbers) < self._config.data.packing_window:
            number = self._blend.draw()
            if number is None:
                break
            numbers.append(number)
        after = self._blend.num_drawn
        of_source = [
            zip(*(part.tolist() for part in order.rows(first, last)), strict=True)
            for order, first, last in zip(self._orders, before, after, strict=True)
        ]
        drawn = []
        for number in numbers:
            row, epoch = next(of_source[number])
            drawn.append((number, row, epoch, 0))
        return drawn

    def _plan(self, drawn: list[tuple[int, int, int, int]]) -> list[Draw]:
        sources, rows, epochs, ages = np.array(drawn, np.int64).reshape(-1, 4).T
        planned: list[Draw | None] = [None] * len(drawn)
        for number in np.unique(sources).tolist():
            places = np.flatnonzero(sources == number)
            plans = self.sources[number].plan(rows[places], epochs[places])
            values = zip(
                places.tolist(),
                rows[places].tolist(),
                epochs[places].tolist(),
                ages[places].tolist(),
                *(getattr(plans, name).tolist() for name in _PLAN_FIELDS),
                strict=True,
            )
            for place, *fields in values:
                planned[place] = Draw(number, *fields)
        return planned  # type: ignore[return-value]

    def _pack(self, draws: list[Draw], is_last: bool) -> list[Pack]:
        stage = self._config.stage
        if not stage.packing:
            self._carried = []
            return [Pack([draw]) for draw in draws]
        lengths = [draw.length for draw in draws]
        num_tiles = [draw.num_tiles for draw in draws]
        packs = pack_samples(
            lengths, num_tiles, stage.sequence_length, stage.max_tiles_per_sequence
        )
        carried: set[int] = set()
        if not is_last:
            ages = [draw.age for draw in draws]
            window = self._config.data.packing_window
            carried = choose_carried(packs, lengths, ages, stage.sequence_length, window)
        samples = sorted(i for number in carried for i in packs[number])
        self._carried = [
            (draws[i].source, draws[i].row, draws[i].epoch, draws[i].age + 1) for i in samples
        ]
        out = [pack for number, pack in enumerate(packs) if number not in carried]
        order = shuffled(len(out), self._config.train.seed, "window", self._number)
        return [Pack([draws[i] for i in out[number]]) for number in order.tolist()]

    def skipped(self, draw: Draw) -> SkippedSample:
        """A dropped draw, as the user reads it."""
        source = self.sources[draw.source]
        return SkippedSample(
            source.index.source,
            source.index.shard_path(draw.row).name,
            source.index.key(draw.row),
            "too_long",
            source.too_long(draw.row, draw.length, draw.num_tiles),
        )

    def _nothing_fits(self, dropped: list[Draw]) -> str:
        first = self.skipped(dropped[0])
        return (
            f"none of {len(dropped)} samples drawn in a row fits a sequence; the first, "
            f"{first.source} {first.shard} {first.key}: {first.detail}"
        )


_PLAN_FIELDS = (
    "lengths",
    "num_tiles",
    "max_num_tiles",
    "num_turns",
    "variants",
    "fits",
    "shortened_tiles",
    "cut_turns",
)


def _nothing_in(source: PlannedSource) -> str:
    index = source.index
    if not index.rejected:
        return f"source {index.source}: its {len(index.shards)} shards have no samples"
    first = index.rejected[0]
    return (
        f"source {index.source}: none of its samples can be used; the first, {first.shard} "
        f"{first.key or '(shard)'}: {first.reason}: {first.detail}"
    )
