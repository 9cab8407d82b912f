"""The loader: packs of the planner read, decoded and encoded by worker processes.

Every rank runs the same planner (order.py) and reads only its own packs. Workers run ahead of
training; the position that travels with a step is the one after that step, whatever they have
already prepared.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from nvlm.batch import MicroBatch, SkippedSample, StepBatch, check_micro_batch
from nvlm.config import RunConfig
from nvlm.data.encode import EncodedSample, SampleEncoder
from nvlm.data.index import SourceIndex
from nvlm.data.order import Draw, Planner
from nvlm.data.packing import build_micro_batch
from nvlm.data.sample import ByteRange, SampleError, ShardReader, parse_sample
from nvlm.data.tiling import cut_tiles, decode_image
from nvlm.errors import DataError

# Micro-batches that each worker prepares ahead.
_NUM_PREFETCHED = 4


@dataclass(frozen=True)
class SampleRequest:
    """All that a worker needs to read one sample; it holds no index."""

    source: str
    shard: str
    key: str
    json: ByteRange
    images: list[ByteRange]
    max_num_tiles: int
    num_tiles: list[int]  # per image
    length: int  # tokens

    def skipped(self, error: SampleError) -> SkippedSample:
        return SkippedSample(
            self.source, os.path.basename(self.shard), self.key, error.reason, error.detail
        )


# A micro-batch: samples per sequence.
MicroBatchRequest = list[list[SampleRequest]]


class Loader:
    """Endless iterator of `StepBatch`, one per global step. See `build_loader`."""

    def __init__(
        self,
        config: RunConfig,
        indexes: list[SourceIndex],
        data_rank: int,
        data_size: int,
        state: dict | None,
    ):
        batch, micro_batch = config.train.global_batch_size, config.train.micro_batch_size
        assert batch % (data_size * micro_batch) == 0, "check_world_size was not called"
        assert 0 <= data_rank < data_size
        self._config = config
        self._planner = Planner(config, indexes)
        self._num_packs = batch // data_size
        self._data_rank, self._data_size = data_rank, data_size
        # Known from the index: reported once, by one rank.
        self._first_skipped = self._planner.skipped if state is None and data_rank == 0 else []
        if state is not None:
            self._planner.load_state(state)
        self._states: deque[dict] = deque()
        self._is_used = False
        self._reader = _MicroBatches(config, SampleEncoder.from_config(config))

    def __iter__(self) -> Iterator[StepBatch]:
        # A second pass would start behind what the workers of the first had requested.
        assert not self._is_used, "a loader is iterated once; build another from a state"
        self._is_used = True
        num_workers = self._config.data.num_workers
        if num_workers:
            # Workers are forked; the tokenizer's own threads do not survive that.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        micro_batches = DataLoader(
            self._reader,
            sampler=_Requests(self._requests),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=_NUM_PREFETCHED if num_workers else None,
            collate_fn=_unchanged,
            # Its own generator: the DataLoader would draw from the training's otherwise.
            generator=torch.Generator(),
        )
        iterator = iter(micro_batches)
        num_micro_batches = self._num_packs // self._config.train.micro_batch_size
        while True:
            skipped, self._first_skipped = list(self._first_skipped), []
            read: list[MicroBatch] = []
            for _ in range(num_micro_batches):
                micro_batch, newly_skipped = next(iterator)
                read.append(micro_batch)
                skipped += newly_skipped
            yield StepBatch(read, skipped, self._states.popleft())

    def _requests(self) -> Iterator[MicroBatchRequest]:
        """This rank's micro-batches; leaves each step's state in `_states`."""
        per_micro_batch = self._config.train.micro_batch_size
        first = self._data_rank * self._num_packs
        while True:
            packs = [self._planner.next_pack() for _ in range(self._config.train.global_batch_size)]
            self._states.append(self._planner.state())
            own = packs[first : first + self._num_packs]
            for start in range(0, len(own), per_micro_batch):
                sequences = own[start : start + per_micro_batch]
                yield [[self._request(draw) for draw in sequence] for sequence in sequences]

    def _request(self, draw: Draw) -> SampleRequest:
        source = self._planner.sources[draw.source]
        index, row = source.index, draw.row
        return SampleRequest(
            source=index.source,
            shard=str(index.shard_path(row)),
            key=index.keys[row],
            json=index.json_range(row),
            images=index.image_ranges(row),
            max_num_tiles=int(source.max_num_tiles[row]),
            num_tiles=source.tiles_per_image(row),
            length=int(source.lengths[row]),
        )


def build_loader(
    config: RunConfig,
    indexes: list[SourceIndex],
    data_rank: int,
    data_size: int,
    state: dict | None = None,
) -> Loader:
    """The training data of one data-parallel rank, from the beginning or from `state` on.

    Of the `g` packs of a global step, rank r of d gets packs r*g/d up to (r+1)*g/d.

    Args:
        indexes: from `open_indexes`.
        state: `StepBatch.data_state` of the last step trained, taken at any data-parallel size and
            with any number of workers.

    Raises:
        DataError: no usable sample, or `state` belongs to other data or settings.
    """
    return Loader(config, indexes, data_rank, data_size, state)


class _Requests(Sampler):
    """A sampler over an endless generator; runs in the main process."""

    def __init__(self, generate):
        self._generate = generate

    def __iter__(self):
        return self._generate()


class _MicroBatches(Dataset):
    """Request in, micro-batch out; runs in a worker."""

    def __init__(self, config: RunConfig, encoder: SampleEncoder):
        self._config = config
        self._encoder = encoder
        self._shards = ShardReader()

    def __getitem__(self, request: MicroBatchRequest) -> tuple[MicroBatch, list[SkippedSample]]:
        skipped: list[SkippedSample] = []
        sequences = []
        for sequence in request:
            samples = []
            for sample in sequence:
                # Only what is known to be the sample's fault. All else is ours and must be seen.
                try:
                    encoded, tiles = self._read(sample)
                except SampleError as error:
                    skipped.append(sample.skipped(error))
                    continue
                samples.append((f"{sample.source}/{sample.key}", encoded, tiles))
            sequences.append(samples)
        vision = self._config.model.vision
        micro_batch = build_micro_batch(
            sequences,
            self._config.stage.sequence_length,
            vision.image_size,
            self._encoder.tokenizer.pad_id,
        )
        check_micro_batch(micro_batch, vision.num_tokens_per_tile)
        return micro_batch, skipped

    def _read(self, sample: SampleRequest) -> tuple[EncodedSample, NDArray[np.uint8]]:
        stage, image_size = self._config.stage, self._config.model.vision.image_size
        raw = self._shards.read(sample.shard, sample.json)
        messages, _ = parse_sample(raw, len(sample.images))
        tiles = [np.zeros((0, 3, image_size, image_size), np.uint8)]
        for where in sample.images:
            image = decode_image(self._shards.read(sample.shard, where))
            tiles.append(cut_tiles(image, sample.max_num_tiles, stage.use_thumbnail, image_size))
        num_tiles = [len(t) for t in tiles[1:]]
        encoded = self._encoder.encode(messages, num_tiles)
        planned, found = (sample.num_tiles, sample.length), (num_tiles, len(encoded.tokens))
        if found != planned:
            raise DataError(
                f"{sample.shard}: sample {sample.key}: tiles and tokens {found}, but {planned} in "
                "the index: the shard changed during the run; start again to index it anew"
            )
        return encoded, np.concatenate(tiles)


def _unchanged(value):
    return value
