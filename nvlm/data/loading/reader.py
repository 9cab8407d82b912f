"""What a worker does: requests in, micro-batches out. It reads, decodes and encodes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nvlm.batch import Beside, Gated, MicroBatch, SkippedSample, check_micro_batch
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

    @property
    def name(self) -> str:
        return f"{self.source}/{self.key}"

    def skipped(self, error: SampleError) -> SkippedSample:
        return SkippedSample(
            self.source, os.path.basename(self.shard), self.key, error.reason, error.detail
        )


# A micro-batch: samples per sequence.
MicroBatchRequest = list[list[SampleRequest]]


# A micro-batch between processes: its fields by name.
Travelling = dict[str, Any]
# Those of its fields that have tensors of their own.
_PARTS = {"beside": Beside, "gated": Gated}
# With what was left out of it, and "SOURCE/WHAT" -> changes made to samples that are used.
Read = tuple[Travelling, list[SkippedSample], Counter[str]]


def pack_up(micro_batch: MicroBatch) -> Travelling:
    """Small tensors as arrays: each tensor would take a connection of its own between processes."""
    values = {f.name: getattr(micro_batch, f.name) for f in fields(micro_batch)}
    for part in _PARTS:
        of_part = values[part]
        values[part] = of_part and {n: _as_array(value) for n, value in vars(of_part).items()}
    return {name: value if name == "tiles" else _as_array(value) for name, value in values.items()}


def _as_array(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def unpack(travelled: Travelling) -> MicroBatch:
    """Tiles from another process are copied: each such tensor keeps a file open, and a step has as
    many as it has micro-batches."""
    values: Travelling = {name: _as_tensor(value) for name, value in travelled.items()}
    for part, kind in _PARTS.items():
        if values[part] is not None:
            values[part] = kind(**{name: _as_tensor(v) for name, v in values[part].items()})
    if values["tiles"].is_shared():
        values["tiles"] = values["tiles"].clone()
    return MicroBatch(**values)


Request = TypeVar("Request")
Result = TypeVar("Result")


def read_or_explain(
    read: Callable[[Request], Result], request: Request, samples: Iterable[SampleRequest]
) -> Result | str:
    """What `read` gives, or a message where no further reading makes sense.

    An exception would arrive from a worker wrapped, with the worker's trace in its message.
    """
    try:
        return read(request)
    except Exception as error:
        message = explain(error)
        keys = [sample.name for sample in samples]
        where = f"while these samples were read: {listed(keys, _MOST_KEYS)}"
        if message is None:
            error.add_note(where)
            raise
        return message if isinstance(error, NvlmError) else f"{message}; {where}"


class MicroBatchReader(Dataset):
    """Request in; micro-batch, what it had to leave out and what it repaired, out.

    Or a message, where no further reading makes sense. It also reads single samples.
    """

    def __init__(self, config: RunConfig, encoder: SampleEncoder, parsers: dict[str, SampleParser]):
        """
        Args:
            parsers: of each source, by name, in the order of the sources' numbers.
        """
        self.config = config
        self.encoder = encoder
        self._parsers = parsers
        self._numbers = {source: number for number, source in enumerate(parsers)}
        self._shards = ShardReader()

    def __getitem__(self, request: MicroBatchRequest) -> Read | str:
        return read_or_explain(self._read, request, chain(*request))

    def _read(self, request: MicroBatchRequest) -> Read:
        skipped: list[SkippedSample] = []
        repaired: Counter[str] = Counter()
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
                samples.append(self.packed(sample, encoded, tiles))
            sequences.append(samples)
        micro_batch = collated(sequences, self.config, self.encoder)
        check_micro_batch(micro_batch, self.encoder.visual)
        return pack_up(micro_batch), skipped, repaired

    def packed(
        self, sample: SampleRequest, encoded: EncodedSample, tiles: NDArray[np.uint8]
    ) -> PackedSample:
        """A sample that was read, as it goes into a sequence."""
        number = self._numbers[sample.source]
        return PackedSample(sample.name, encoded, tiles, sample.loss_weight, number)

    def read_sample(self, sample: SampleRequest) -> tuple[EncodedSample, NDArray[np.uint8]]:
        """A sample as it is trained, and its tiles [n, 3, image_size, image_size].

        Raises:
            SampleError: it cannot be used.
            DataError: it is not what the index says.
        """
        encoded, size = self.read_text(sample), self.encoder.visual.image_size
        tiles = [np.zeros((0, 3, size, size), np.uint8)]
        tiles += self.read_images(sample, 0, len(sample.grids))
        return encoded, np.concatenate(tiles)

    def read_text(self, sample: SampleRequest) -> EncodedSample:
        """Its tokens, with the places of its tiles.

        Raises:
            SampleError, DataError: as `read_sample`.
        """
        texts = {
            name: self._shards.read(sample.shard, where) for name, where in sample.texts.items()
        }
        stored = self._parsers[sample.source].parse(texts, len(sample.images), sample.num_frames)
        messages = keep_turns(stored.conversation(sample.variant), sample.num_turns)
        encoded = self.encoder.encode(
            messages, sample.grids, stored.untrained_turns, stored.alignment_level
        )
        if len(encoded.tokens) != sample.length:
            raise _changed(sample, f"{len(encoded.tokens)} tokens, but {sample.length}")
        return encoded

    def read_images(
        self, sample: SampleRequest, start: int, stop: int
    ) -> Iterator[NDArray[np.uint8]]:
        """The tiles of each of its kept images (of a video: frames) from `start` to `stop`.

        Raises:
            SampleError, DataError: as `read_sample`, where that image is asked for.
        """
        visual, use_thumbnail = self.encoder.visual, self.config.stage.use_thumbnail
        limit = 1 if sample.num_frames else sample.max_num_tiles
        resize = self.config.data.image_resize
        for number, pixels in enumerate(self._decode(sample, start, stop), start):
            tiles = cut_tiles(
                pixels, limit, use_thumbnail, visual.image_size, resize, visual.tiling
            )
            planned = visual.num_tiles(sample.grids[number])
            if len(tiles) != planned:
                raise _changed(sample, f"{len(tiles)} tiles of image {number + 1}, but {planned}")
            yield tiles

    def _decode(self, sample: SampleRequest, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """Images `start` to `stop` of those that are kept, or such frames of the video."""
        if sample.num_frames:  # of which all are decoded anyway
            kept = sample.images[: len(sample.grids)]
        else:
            kept = sample.images[start:stop]
        decoded = decode_images(
            self._shards,
            sample.shard,
            kept,
            sample.num_frames,
            self.config.data.max_image_megapixels,
        )
        return islice(decoded, start, stop) if sample.num_frames else decoded


def _changed(sample: SampleRequest, found: str) -> DataError:
    return DataError(
        f"{sample.shard}: sample {sample.key}: {found} in the index: the shard changed during the "
        "run; start again to index it again"
    )


def collated(
    sequences: Sequence[Sequence[PackedSample]], config: RunConfig, encoder: SampleEncoder
) -> MicroBatch:
    """`build_micro_batch` as the run has it."""
    return build_micro_batch(
        sequences,
        config.stage.sequence_length,
        encoder.visual.image_size,
        encoder.tokenizer.pad_id,
        config.train.loss_weighting,
        has_beside=encoder.visual.fusion != "decoder_only",
    )
