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

import itertools
from typing import TypeVar

import numpy as np

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.data.order.blend import Blend
from nvlm.data.order.draws import Draw, Draws, Integers, Pack, PlannedDraws, Window, no_draws
from nvlm.data.order.lengths import PlannedSource
from nvlm.data.order.packing import choose_carried, pack_samples
from nvlm.data.order.permutation import SampleOrder, shuffled
from nvlm.errors import DataError

AnyDraws = TypeVar("AnyDraws", bound=Draws)


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
        self._carried = no_draws()

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
        is_last = len(drawn) < self._config.data.packing_window
        drawn = Draws.concat([self._carried, drawn])
        if len(drawn) == 0:
            return None
        planned = self._plan(drawn)
        fitting, dropped = planned.take(planned.fits), planned.take(~planned.fits)
        if len(fitting) == 0 and (not is_last or self._number == 0):
            raise DataError(self._nothing_fits(dropped))
        packed, starts = self._pack(fitting, is_last)
        self._number += 1
        return Window(packed, starts, dropped).packs()

    def state(self) -> dict:
        """Where the next window starts. JSON values only."""
        return {
            "number": self._number,
            "blend": self._blend.state(),
            # [source, row, pass, age] of each.
            "carried": np.stack(
                [self._carried.source, self._carried.row, self._carried.epoch, self._carried.age],
                axis=1,
            ).tolist(),
        }

    def load_state(self, state: dict) -> None:
        self._number = state["number"]
        self._blend.load_state(state["blend"])
        source, row, epoch, age = np.array(state["carried"], np.int64).reshape(-1, 4).T
        self._carried = Draws(source=source, row=row, epoch=epoch, age=age)

    def start_behind(self, num_drawn: list[int]) -> None:
        """Start with so many draws per source done, and nothing else."""
        self._number, self._carried = 0, no_draws()
        self._blend.start_behind(num_drawn)

    def place(self, num_draws: int) -> None:
        """Go to about where `num_draws` draws end; see `Blend.place`."""
        self._number = num_draws // self._config.data.packing_window
        self._blend.place(num_draws)
        self._carried = no_draws()

    def _draw(self) -> Draws:
        """The next window's draws, fewer than a window where the data end."""
        before = self._blend.num_drawn
        drawn = itertools.islice(iter(self._blend.draw, None), self._config.data.packing_window)
        sources = np.array(list(drawn), np.int64)
        after = self._blend.num_drawn
        by_source = [
            Draws.of_source(number, *order.rows(first, last))
            for number, (order, first, last) in enumerate(
                zip(self._orders, before, after, strict=True)
            )
        ]
        return _spread(by_source, np.argsort(sources, kind="stable"))

    def _plan(self, drawn: Draws) -> PlannedDraws:
        by_source = np.argsort(drawn.source, kind="stable")
        planned = [
            self.sources[number].plan(drawn.take(drawn.source == number))
            for number in np.unique(drawn.source).tolist()
        ]
        return _spread(planned, by_source)

    def _pack(self, draws: PlannedDraws, is_last: bool) -> tuple[PlannedDraws, list[int]]:
        """(draws of the packs that go out, their starts); the others' samples are carried over.

        At least one pack goes out, an empty one where there are no draws.
        """
        stage, window = self._config.stage, self._config.data.packing_window
        self._carried = no_draws()
        if not stage.packing or len(draws) == 0:
            return draws, [*range(max(1, len(draws))), len(draws)]
        packs = pack_samples(
            draws.length, draws.num_tiles, stage.sequence_length, stage.max_tiles_per_sequence
        )
        carried: set[int] = set()
        if not is_last:
            carried = choose_carried(packs, draws.length, draws.age, stage.sequence_length, window)
        left = draws.take(sorted(i for number in carried for i in packs[number]))
        self._carried = Draws(left.source, left.row, left.epoch, left.age + 1)
        out = [pack for number, pack in enumerate(packs) if number not in carried]
        order = shuffled(len(out), self._config.train.seed, "window", self._number).tolist()
        starts = [0, *itertools.accumulate(len(out[number]) for number in order)]
        return draws.take([sample for number in order for sample in out[number]]), starts

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

    def _nothing_fits(self, dropped: PlannedDraws) -> str:
        first = self.skipped(next(iter(dropped)))
        return (
            f"none of {len(dropped)} samples drawn in a row fits a sequence; the first, "
            f"{first.source} {first.shard} {first.key}: {first.detail}"
        )


def _spread(parts: list[AnyDraws], by_part: Integers) -> AnyDraws:
    """The draws of all parts in the order of the window.

    Args:
        by_part: [n] places in the window of the parts' draws, one part after another.
    """
    return type(parts[0]).concat(parts).take(np.argsort(by_part))


def _nothing_in(source: PlannedSource) -> str:
    index = source.index
    if not index.rejected:
        return f"source {index.source}: its {len(index.shards)} shards have no samples"
    first = index.rejected[0]
    return (
        f"source {index.source}: none of its samples can be used; the first, {first.shard} "
        f"{first.key or '(shard)'}: {first.reason}: {first.detail}"
    )
