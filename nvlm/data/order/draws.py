"""Draws as columns: which samples are used, in which pass, and what is planned for each.

A window is planned, packed and dealt out as arrays of equal length, one per fact; a pack is a few
rows of its window's. Single draws (`Draw`) are made where one sample is read or shown. Fields are
taken by their names everywhere, never by their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Draw(NamedTuple):
    """One use of one sample, as planned: a row of `PlannedDraws`."""

    source: int
    row: int
    epoch: int
    age: int
    length: int
    num_tiles: int
    max_num_tiles: int
    num_turns: int
    variant: int
    fits: bool
    shortened_tiles: bool
    cut_turns: bool


@dataclass(frozen=True)
class Draws:
    """Uses of n samples; every field is an array [n]."""

    source: Integers  # number of the source in the planner's list
    row: Integers  # of the source's index
    epoch: Integers  # pass over the source, from 0
    age: Integers  # windows that it was carried over

    @classmethod
    def of_source(cls, source: int, rows: Integers, epochs: Integers) -> Draws:
        """New draws of one source."""
        return Draws(np.full_like(rows, source), rows, epochs, np.zeros_like(rows))

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: Integers | Flags | list[int] | slice) -> Self:
        """Those at `rows`, in that order; views of these columns where `rows` is a slice."""
        if isinstance(rows, list):
            rows = np.array(rows, np.int64)
        return type(self)(**{name: column[rows] for name, column in vars(self).items()})

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """The draws of all parts, one part after another; at least one part."""
        return cls(
            **{
                column.name: np.concatenate([getattr(part, column.name) for part in parts])
                for column in fields(cls)
            }
        )


@dataclass(frozen=True)
class PlannedDraws(Draws):
    """Draws and their plans; every field is an array [n]."""

    length: Integers  # tokens
    num_tiles: Integers  # of all images
    max_num_tiles: Integers  # most tiles per image; fewer than the source's if too long
    num_turns: Integers  # turns kept: a question and its answer, or a document's part
    variant: Integers  # which of the sample's prompts and answers is used
    fits: Flags  # False: leave the sample out, reason `too_long`
    shortened_tiles: Flags  # fits with fewer tiles than it would have
    cut_turns: Flags  # fits without its last turns

    def __iter__(self) -> Iterator[Draw]:
        columns = {name: getattr(self, name).tolist() for name in Draw._fields}
        for number in range(len(self)):
            yield Draw(**{name: values[number] for name, values in columns.items()})


@dataclass(frozen=True)
class Window:
    """Draws that were packed together."""

    draws: PlannedDraws  # of its packs, one pack after another
    starts: list[int]  # of each pack in `draws`, and where the last one ends
    dropped: PlannedDraws  # drawn with them, but too long for any sequence

    def packs(self) -> list[Pack]:
        return [Pack(self, number) for number in range(len(self.starts) - 1)]


@dataclass(frozen=True)
class Pack:
    """The samples of a sequence: rows of their window's columns."""

    window: Window
    number: int  # of the pack in its window

    @property
    def draws(self) -> PlannedDraws:
        """In their order in the sequence."""
        start, stop = self.window.starts[self.number : self.number + 2]
        return self.window.draws.take(slice(start, stop))

    @property
    def dropped(self) -> PlannedDraws:
        """This pack's share of what the window dropped."""
        num_packs = len(self.window.starts) - 1
        return self.window.dropped.take(slice(self.number, None, num_packs))

    def count_sources(self, num_sources: int) -> Integers:
        """[num_sources] draws of each source, those among them that were dropped too."""
        window = self.window
        start, stop = window.starts[self.number : self.number + 2]
        dropped = window.dropped.source[self.number :: len(window.starts) - 1]
        sources = np.concatenate([window.draws.source[start:stop], dropped])
        return np.bincount(sources, minlength=num_sources)

    def emptied(self) -> Pack:
        """A pack without samples."""
        none = self.window.draws.take(slice(0))
        return Pack(Window(none, [0, 0], none), 0)


def no_draws() -> Draws:
    none = np.zeros(0, np.int64)
    return Draws(none, none, none, none)
