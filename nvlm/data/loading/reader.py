"""What a worker does: requests in, micro-batches out. It reads, decodes and encodes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nvlm.batch import MicroBatch, SkippedSample, check_micro_batch
from nvlm.config import RunConfig
from nvlm.data.images.tiling import cut_tiles
from nvlm.data.index.stored import decode_images
from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.samples.conversations import keep_turns
from nvlm.data.samples.kinds import SampleParser
from nvlm.data.samples.repairs import noting_repairs
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import ByteRange, ShardReader
from nvlm.data.text.encode import EncodedSample, SampleEncoder
from nvlm.errors import DataError, NvlmError
from nvlm.failures import explain
from nvlm.printing import listed
from nvlm.sizes.visual import Grid

# Longer lists are cut, with the number of what was left out.
_MOST_KEYS = 40


@dataclass(frozen=True)
class SampleRequest:
    """All that a worker needs to read one sample; it holds no index."""

    source: str
    shard: str
    key: str
    texts: dict[str, ByteRange]  # text members by extension
    images: list[ByteRange]  # all of them, also those of turns that are cut
    num_frames: int  # of its video, which then is each of `images`; 0: it has none
    epoch: int  # pass over the source, from 0
    variant: int  # which prompt and answer
    num_turns: int  # turns kept
    max_num_tiles: int  # most tiles per image
    grids: list[Grid]  # (columns, rows) of each image kept
    length: int  # tokens
    loss_weight: float  # its source's times its own

    def skipped(self, error: SampleError) -> SkippedSample:
        return SkippedSample(
            self.source, os.path.basename(self.shard), self.key, error.reason, error.detail
        )


# A micro-batch: samples per sequence.
MicroBatchRequest = list[list[SampleRequest]]


# A micro-batch between processes: its fields by name.
Travelling = dict[str, Any]


def pack_up(micro_batch: MicroBatch) -> Travelling:
    """Small tensors as arrays: each tensor would take a connection of its own between processes."""
    values = {f.name: getattr(micro_batch, f.name) for f in fields(micro_batch)}
    return {
        name: value.numpy() if isinstance(value, Tensor) and name != "tiles" else value
        for name, value in values.items()
    }


def unpack(travelled: Travelling) -> MicroBatch:
    """Tiles from another process are copied: each such tensor keeps a file open, and a step has as
    many as it has micro-batches."""
    values: Travelling = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in travelled.items()
    }
    if values["tiles"].is_shared():
        values["tiles"] = values["tiles"].clone()
    return MicroBatch(**values)


class MicroBatchReader(Dataset):
    """Request in; micro-batch, what it had to leave out and what it repaired, out.

    Or a message, where no further reading makes sense.
    """

    def __init__(self, config: RunConfig, encoder: SampleEncoder, parsers: dict[str, SampleParser]):
        """
        Args:
            parsers: of each source, by name, in the order of the sources' numbers.
        """
        self._config = config
        self._encoder = encoder
        self._parsers = parsers
        self._numbers = {source: number for number, source in enumerate(parsers)}
        self._shards = ShardReader()

    def __getitem__(
        self, request: MicroBatchRequest
    ) -> tuple[Travelling, list[SkippedSample], Counter[str]] | str:
        # An exception would arrive wrapped, with the worker's trace in its message.
        try:
            return self._read(request)
        except Exception as error:
            message = explain(error)
            keys = [f"{sample.source}/{sample.key}" for sequence in request for sample in sequence]
            where = f"while these samples were read: {listed(keys, _MOST_KEYS)}"
            if message is None:
                error.add_note(where)
                raise
            return message if isinstance(error, NvlmError) else f"{message}; {where}"

    def _read(
        self, request: MicroBatchRequest
    ) -> tuple[Travelling, list[SkippedSample], Counter[str]]:
        skipped: list[SkippedSample] = []
        repaired: Counter[str] = Counter()  # "SOURCE/WHAT" -> how often, in samples that are used
        sequences = []
        for sequence in request:
            samples = []
            for sample in sequence:
                # Only what is known to be the sample's fault. All else is ours and must be seen.
                try:
                    with noting_repairs() as repairs:
                        encoded, tiles = self.read_sample(sample)
                except SampleError as error:
                    skipped.append(sample.skipped(error))
                    continue
                repaired.update({f"{sample.source}/{what}": n for what, n in repairs.items()})
                key = f"{sample.source}/{sample.key}"
                number = self._numbers[sample.source]
                samples.append(PackedSample(key, encoded, tiles, sample.loss_weight, number))
            sequences.append(samples)
        visual = self._encoder.visual
        micro_batch = build_micro_batch(
            sequences,
            self._config.stage.sequence_length,
            visual.image_size,
            self._encoder.tokenizer.pad_id,
            self._config.train.loss_weighting,
        )
        check_micro_batch(micro_batch, visual)
        return pack_up(micro_batch), skipped, repaired

    def read_sample(self, sample: SampleRequest) -> tuple[EncodedSample, NDArray[np.uint8]]:
        """A sample as it is trained, and its tiles [n, 3, image_size, image_size].

        Raises:
            SampleError: it cannot be used.
            DataError: it is not what the index says.
        """
        data, stage = self._config.data, self._config.stage
        image_size = self._config.model.vision.image_size
        texts = {
            name: self._shards.read(sample.shard, where) for name, where in sample.texts.items()
        }
        stored = self._parsers[sample.source].parse(texts, len(sample.images), sample.num_frames)
        messages = keep_turns(stored.conversation(sample.variant), sample.num_turns)
        tiles = [np.zeros((0, 3, image_size, image_size), np.uint8)]
        for pixels in self._read_images(sample):
            limit = 1 if sample.num_frames else sample.max_num_tiles
            tiles.append(
                cut_tiles(pixels, limit, stage.use_thumbnail, image_size, data.image_resize)
            )
        encoded = self._encoder.encode(messages, sample.grids, stored.untrained_turns)
        planned_tiles = [self._encoder.visual.num_tiles(grid) for grid in sample.grids]
        planned, found = (
            (planned_tiles, sample.length),
            ([len(t) for t in tiles[1:]], len(encoded.tokens)),
        )
        if found != planned:
            raise DataError(
                f"{sample.shard}: sample {sample.key}: tiles and tokens {found}, but {planned} in "
                "the index: the shard changed during the run; start again to index it again"
            )
        return encoded, np.concatenate(tiles)

    def _read_images(self, sample: SampleRequest) -> Iterator[NDArray[np.uint8]]:
        """The images that are kept, or the frames of the video, decoded."""
        return decode_images(
            self._shards,
            sample.shard,
            sample.images[: len(sample.grids)],
            sample.num_frames,
            self._config.data.max_image_megapixels,
        )
