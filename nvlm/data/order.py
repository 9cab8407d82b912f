"""The order of samples: a pure function of (seed, blend, position), the same on every rank.

1. Draw g comes from the source that is furthest behind its weight, by Tijdeman's rule (The chairman
   assignment problem, Discrete Mathematics 32, 1980): after every draw each source has been drawn
   within one of its share.
2. The p-th draw from a source is entry p mod n of a permutation of its n samples, which is a
   function of (seed, source, epoch).
3. Every `data.packing_window` draws are packed together (packing.py). Packs with much room left go,
   unpacked again, to the next window, once; the others are shuffled and handed out.

All of it reads the index only. The state is where the current window began and how many of its
packs were taken: small, JSON, and independent of processes and workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.data.index import SourceIndex, open_indexes
from nvlm.data.packing import pack_samples
from nvlm.data.tiling import count_tiles
from nvlm.errors import DataError

# A pack filled to this share is not worth another window.
_FULL_SHARE = 0.95
# At most this share of a window's samples is carried over.
_MAX_CARRIED_SHARE = 0.25
# Purposes of random numbers, so that no two draw from the same stream.
_SAMPLE_STREAM, _PACK_STREAM = 1, 2


class Draw(NamedTuple):
    """One use of one sample."""

    source: int  # index into the planner's sources
    row: int  # index into the source's index
    epoch: int


@dataclass(frozen=True)
class PlannedSource:
    """What the stage's settings make of a source's index: m images, n samples."""

    index: SourceIndex
    rows: NDArray[np.int64]  # samples that fit, as rows of the index
    max_num_tiles: NDArray[np.int64]  # [n]; most tiles per image, fewer for samples too long
    num_tiles: NDArray[np.int64]  # [n]; tiles in all
    lengths: NDArray[np.int64]  # [n]; tokens
    image_tiles: NDArray[np.int64]  # [m]; tiles per image
    dropped: list[SkippedSample]

    def tiles_per_image(self, row: int) -> list[int]:
        starts = self.index.image_starts
        return self.image_tiles[starts[row] : starts[row + 1]].tolist()


def plan_source(config: RunConfig, index: SourceIndex) -> PlannedSource:
    """Tiles and length of every sample.

    A sample over `stage.sequence_length` or the tile budget gets fewer tiles per image, down to
    one; if it still does not fit it is dropped with the reason `too_long`. No image is ever cut.
    """
    stage, vision = config.stage, config.model.vision
    max_tiles_per_sequence = stage.max_tiles_per_sequence or np.iinfo(np.int64).max
    num_samples = len(index)
    owner = np.repeat(np.arange(num_samples), np.diff(index.image_starts))
    tags_after_first = np.array(
        [0] + [index.tag_lengths.num_tokens_after_first(tiles, stage.use_thumbnail)
               for tiles in range(1, stage.max_num_tiles + 2)]
    )  # fmt: skip

    def per_sample(values: NDArray) -> NDArray[np.int64]:
        return np.bincount(owner, weights=values, minlength=num_samples).astype(np.int64)

    max_num_tiles = np.zeros(num_samples, np.int64)
    num_tiles = np.zeros(num_samples, np.int64)
    lengths = np.zeros(num_samples, np.int64)
    image_tiles = np.zeros(index.num_images, np.int64)
    pending = np.ones(num_samples, np.bool_)
    for limit in range(stage.max_num_tiles, 0, -1):
        tiles = count_tiles(
            index.image_width, index.image_height, limit, stage.use_thumbnail, vision.image_size
        )
        lead = np.where(tiles == 1, index.lead_single, index.lead_multiple)
        image_tokens = lead + tags_after_first[tiles] + tiles * vision.num_tokens_per_tile
        new_lengths = index.num_text_tokens + per_sample(image_tokens)
        new_num_tiles = per_sample(tiles)
        lengths[pending], num_tiles[pending] = new_lengths[pending], new_num_tiles[pending]
        max_num_tiles[pending] = limit
        image_tiles[pending[owner]] = tiles[pending[owner]]
        pending = (lengths > stage.sequence_length) | (num_tiles > max_tiles_per_sequence)
        if not pending.any():
            break

    dropped = [
        SkippedSample(
            index.source,
            index.shard_path(row).name,
            index.keys[row],
            "too_long",
            f"{lengths[row]} tokens and {num_tiles[row]} tiles at one tile per image, for "
            f"stage.sequence_length {stage.sequence_length} and stage.max_tiles_per_sequence "
            f"{stage.max_tiles_per_sequence}",
        )
        for row in np.flatnonzero(pending).tolist()
    ]
    rows = np.flatnonzero(~pending)
    return PlannedSource(index, rows, max_num_tiles, num_tiles, lengths, image_tiles, dropped)


class Planner:
    """The endless sequence of packs of a run.

    Raises:
        DataError: a source of the run has no usable sample.
    """

    def __init__(self, config: RunConfig, indexes: list[SourceIndex]):
        self._seed = config.train.seed
        self._stage = config.stage
        self._window_size = config.data.packing_window
        self.fingerprint = data_fingerprint(config, indexes)
        self.sources = [plan_source(config, index) for index in indexes]
        for source in self.sources:
            if len(source.rows) == 0:
                raise DataError(_nothing_usable(source))
        if config.data.blend is None:
            weights = [float(len(source.rows)) for source in self.sources]
        else:
            weights = [config.data.blend[index.source] for index in indexes]
        self._shares = [weight / sum(weights) for weight in weights]
        self._permutations: dict[tuple[int, int], NDArray[np.int64]] = {}
        # Of the current window: its number, draws per source before it, samples carried into it.
        self._window = -1
        self._num_drawn = [0] * len(self.sources)
        self._carried: list[Draw] = []
        self._num_packs_taken = 0
        self._packs: list[list[Draw]] = []
        # The same for the window after it.
        self._next_num_drawn = list(self._num_drawn)
        self._next_carried: list[Draw] = []

    @property
    def skipped(self) -> list[SkippedSample]:
        """What the run leaves out from the start: unreadable or too long."""
        return [
            skipped
            for source in self.sources
            for skipped in (*source.index.rejected, *source.dropped)
        ]

    def next_pack(self) -> list[Draw]:
        """The samples of the next sequence, in the order in which they stand in it."""
        while self._num_packs_taken == len(self._packs):
            self._num_drawn, self._carried = self._next_num_drawn, self._next_carried
            self._window += 1
            self._num_packs_taken = 0
            self._plan_window()
        self._num_packs_taken += 1
        return self._packs[self._num_packs_taken - 1]

    def state(self) -> dict:
        """Where the next pack stands. JSON values only."""
        return {
            "fingerprint": self.fingerprint,
            "window": self._window,
            "num_drawn": list(self._num_drawn),
            "carried": [list(draw) for draw in self._carried],
            "num_packs_taken": self._num_packs_taken,
        }

    def load_state(self, state: dict) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: it belongs to other data or settings; the message shows the difference.
        """
        _check_fingerprint(self.fingerprint, state["fingerprint"])
        self._window = state["window"]
        self._num_drawn = list(state["num_drawn"])
        self._carried = [Draw(*draw) for draw in state["carried"]]
        self._num_packs_taken = state["num_packs_taken"]
        self._packs = []
        if self._window >= 0:
            self._plan_window()
        else:
            self._next_num_drawn, self._next_carried = self._num_drawn, self._carried

    def key(self, draw: Draw) -> str:
        index = self.sources[draw.source].index
        return f"{index.source}/{index.keys[draw.row]}"

    def _plan_window(self) -> None:
        num_drawn = list(self._num_drawn)
        drawn = [self._draw(num_drawn) for _ in range(self._window_size)]
        self._next_num_drawn = num_drawn
        if not self._stage.packing:
            self._packs, self._next_carried = [[draw] for draw in drawn], []
            return
        draws = self._carried + drawn
        lengths = [int(self.sources[draw.source].lengths[draw.row]) for draw in draws]
        num_tiles = [int(self.sources[draw.source].num_tiles[draw.row]) for draw in draws]
        packs = pack_samples(
            lengths, num_tiles, self._stage.sequence_length, self._stage.max_tiles_per_sequence
        )
        carried = self._choose_carried(packs, lengths, num_tiles, len(self._carried))
        self._next_carried = [draws[i] for i in sorted(i for pack in carried for i in packs[pack])]
        full = [pack for number, pack in enumerate(packs) if number not in carried]
        shuffled = _permutation(len(full), self._seed, _PACK_STREAM, self._window)
        self._packs = [[draws[i] for i in full[number]] for number in shuffled]

    def _choose_carried(
        self, packs: list[list[int]], lengths: list[int], num_tiles: list[int], num_old: int
    ) -> set[int]:
        """Packs to pack anew with the next window's samples: the emptiest of the new ones.

        Samples below `num_old` were carried before and go out now, so none waits for ever.
        """
        max_tiles = self._stage.max_tiles_per_sequence
        fills = []
        for number, pack in enumerate(packs):
            fill = sum(lengths[i] for i in pack) / self._stage.sequence_length
            if max_tiles is not None:
                fill = max(fill, sum(num_tiles[i] for i in pack) / max_tiles)
            if fill < _FULL_SHARE and pack[0] >= num_old:
                fills.append((fill, number))
        carried: set[int] = set()
        num_samples = 0
        for _, number in sorted(fills):
            num_samples += len(packs[number])
            # One pack at least goes out, or a window of few long samples would be empty.
            if num_samples > _MAX_CARRIED_SHARE * self._window_size:
                break
            if len(carried) == len(packs) - 1:
                break
            carried.add(number)
        return carried

    def _draw(self, num_drawn: list[int]) -> Draw:
        """The next draw; counts it in `num_drawn`."""
        source = _furthest_behind(self._shares, num_drawn)
        num_samples = len(self.sources[source].rows)
        epoch, position = divmod(num_drawn[source], num_samples)
        num_drawn[source] += 1
        return Draw(source, int(self._epoch_order(source, epoch)[position]), epoch)

    def _epoch_order(self, source: int, epoch: int) -> NDArray[np.int64]:
        """Rows of the source's index in the order of this epoch."""
        if (source, epoch) not in self._permutations:
            self._permutations.pop((source, epoch - 1), None)
            planned = self.sources[source]
            # The name, not the number: the order within a source does not depend on the others.
            name = zlib.crc32(planned.index.source.encode())
            order = _permutation(len(planned.rows), self._seed, _SAMPLE_STREAM, name, epoch)
            self._permutations[source, epoch] = planned.rows[order]
        return self._permutations[source, epoch]


def data_fingerprint(config: RunConfig, indexes: list[SourceIndex]) -> dict:
    """Everything that decides the order, as readable settings. JSON values only."""
    stage, vision = config.stage, config.model.vision
    return {
        "train.seed": config.train.seed,
        "train.global_batch_size": config.train.global_batch_size,
        "data.split": config.data.split,
        "data.blend": config.data.blend,
        "data.packing_window": config.data.packing_window,
        "stage.sequence_length": stage.sequence_length,
        "stage.max_num_tiles": stage.max_num_tiles,
        "stage.use_thumbnail": stage.use_thumbnail,
        "stage.packing": stage.packing,
        "stage.max_tiles_per_sequence": stage.max_tiles_per_sequence,
        "model.vision.image_size": vision.image_size,
        "model.vision.patch_size": vision.patch_size,
        "model.image_token": config.model.image_token,
        **indexes[0].template,
        "sources": {index.source: index.content_hash for index in indexes},
    }


def check_state(config: RunConfig, indexes: list[SourceIndex], state: dict) -> None:
    """Raise `DataError` showing what differs, if `state` was taken with other data or settings."""
    _check_fingerprint(data_fingerprint(config, indexes), state["fingerprint"])


def iterate_order(
    config: RunConfig, num_steps: int, state: dict | None = None
) -> Iterator[tuple[int, list[list[str]]]]:
    """(step from 1, sample keys of each pack of the global step), without reading images."""
    planner = Planner(config, open_indexes(config))
    if state is not None:
        planner.load_state(state)
    for step in range(1, num_steps + 1):
        packs = [planner.next_pack() for _ in range(config.train.global_batch_size)]
        yield step, [[planner.key(draw) for draw in pack] for pack in packs]


def _furthest_behind(shares: list[float], num_drawn: list[int]) -> int:
    """Tijdeman's rule: of the sources that may be drawn now, the one whose turn ends first."""
    if len(shares) == 1:
        return 0
    draw = sum(num_drawn) + 1
    margin = 1 / (2 * len(shares) - 2)
    best, best_deadline = -1, float("inf")
    for source, share in enumerate(shares):
        behind = share * draw - num_drawn[source]
        # 1e-6: rounding must not disqualify every source where shares divide evenly.
        if behind < margin - 1e-6:
            continue
        deadline = (1 - margin - behind) / share
        if deadline < best_deadline:
            best, best_deadline = source, deadline
    assert best >= 0, "one source is always behind its share"
    return best


def _permutation(size: int, *stream: int) -> NDArray[np.int64]:
    """A permutation from raw generator output: NumPy guarantees that stream across versions."""
    raw = np.random.PCG64(np.random.SeedSequence(stream)).random_raw(size)
    return np.argsort(raw, kind="stable")


def _check_fingerprint(current: dict, saved: dict) -> None:
    differences = _differences(saved, current)
    if differences:
        raise DataError(
            "the data position of the checkpoint belongs to another order of samples: "
            + "; ".join(differences)
            + ". Put these back, or start a new run in another run.dir"
        )


def _differences(saved: dict, current: dict) -> list[str]:
    lines = []
    for key in sorted({*saved, *current} - {"sources"}):
        old, new = saved.get(key), current.get(key)
        if old != new and key == "tokenizer":
            lines.append("the tokenizer is another one")
        elif old != new:
            lines.append(f"{key} was {old!r}, is {new!r}")
    for source in sorted({*saved["sources"], *current["sources"]}):
        old, new = saved["sources"].get(source), current["sources"].get(source)
        if old != new:
            what = "is new" if old is None else "is gone" if new is None else "has other samples"
            lines.append(f"source {source} {what}")
    return lines


def _nothing_usable(source: PlannedSource) -> str:
    skipped = [*source.index.rejected, *source.dropped]
    name = source.index.source
    if not skipped:
        return f"source {name}: its {len(source.index.shards)} shards have no samples"
    first = skipped[0]
    return (
        f"source {name}: none of its samples can be used; the first, {first.shard} "
        f"{first.key or '(shard)'}: {first.reason}: {first.detail}"
    )
