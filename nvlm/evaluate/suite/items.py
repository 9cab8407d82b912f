"""A benchmark's questions as they will be asked: which, and after which examples."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from pathlib import Path

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.suite.settings import Asked
from nvlm.hashes import hash_text

# As many as any number of shots; of eight, the first four are those of four.
_MAX_SHOTS = 8


def read_items(asked: Asked, data: Path) -> list[Item]:
    """The questions of the split in their published order; of `limit`, always the same ones.

    As evaluate/questions.py chooses: those whose keys have the lowest CRC-32, which is blind to any
    pattern in the order.

    Raises:
        DataError: the files cannot be read, have no question, or have one key twice.
    """
    items = _read(asked, data, asked.split)
    limit = asked.settings.limit
    if limit is None or limit >= len(items):
        return items
    lots = sorted(range(len(items)), key=lambda at: (zlib.crc32(items[at].key.encode()), at))
    return [items[at] for at in sorted(lots[:limit])]


class Shots:
    """The examples that stand before questions; the same for the same question and seed."""

    def __init__(self, asked: Asked, data: Path):
        """
        Raises:
            DataError: the split to draw from cannot be read, or has too few samples.
        """
        self._num = asked.settings.shots
        self._seed = asked.settings.shots_seed
        split = asked.benchmark.train_split
        self._is_own_split = split == asked.split
        self._items: Sequence[Item] = []
        if self._num:
            assert split is not None, "see `choose`"
            self._items = _read(asked, data, split)
            if len(self._items) <= _MAX_SHOTS:
                raise DataError(
                    f"{asked.name}: --shots draws from {split}, which has {len(self._items)} "
                    f"samples, expected more than {_MAX_SHOTS}"
                )

    def before(self, item: Item) -> list[Item]:
        """The examples for `item`, never itself."""
        if not self._num:
            return []
        draw = random.Random(hash_text(f"{self._seed} {item.key}"))
        drawn = [self._items[at] for at in draw.sample(range(len(self._items)), _MAX_SHOTS + 1)]
        if self._is_own_split:
            drawn = [shot for shot in drawn if shot.key != item.key]
        return drawn[: self._num]


def _read(asked: Asked, data: Path, split: str) -> list[Item]:
    folder = data / asked.name
    items = list(asked.benchmark.read(folder, split))
    if not items:
        raise DataError(f"{folder}: split {split} of {asked.name} has no questions")
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise DataError(
                f"{folder}: split {split} of {asked.name}: key {item.key} is there twice"
            )
        seen.add(item.key)
    return items
