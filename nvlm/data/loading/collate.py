"""The row of tokens that packed samples become, and what each token counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nvlm.batch import IGNORED_LABEL, Beside, Gated, MicroBatch
from nvlm.data.text.encode import EncodedSample


@dataclass(frozen=True)
class PackedSample:
    """A sample that was read, as it goes into a sequence."""

    key: str
    encoded: EncodedSample
    tiles: NDArray[np.uint8]  # [n, 3, image_size, image_size]
    loss_weight: float = 1.0  # its source's times its own
    source_number: int = 0  # see `MicroBatch.source_numbers`


def build_micro_batch(
    sequences: Sequence[Sequence[PackedSample]],
    sequence_length: int,
    image_size: int,
    pad_id: int,
    loss_weighting: str = "token",
    has_beside: bool = False,
) -> MicroBatch:
    """One row of `len(sequences) * sequence_length` tokens.

    Args:
        image_size: pixels; gives the shape of `tiles` where there are none.
        pad_id: token of the padding document that ends a sequence with room left.
        loss_weighting: see `TrainConfig.loss_weighting`.
        has_beside: the decoder reads a row beside its own; of samples without images too.
    """
    num_tokens = len(sequences) * sequence_length
    tokens = np.full(num_tokens, pad_id, np.int64)
    labels = np.full(num_tokens, IGNORED_LABEL, np.int64)
    loss_weights = np.zeros(num_tokens, np.float32)
    source_numbers = np.full(num_tokens, -1, np.int32)
    image_mask, position_ids = np.zeros(num_tokens, np.bool_), np.zeros(num_tokens, np.int64)
    starts: list[int] = []
    documents: list[tuple[int, EncodedSample]] = []
    tiles = [np.zeros((0, 3, image_size, image_size), np.uint8)]
    for number, samples in enumerate(sequences):
        start, end = number * sequence_length, (number + 1) * sequence_length
        for sample in samples:
            encoded = sample.encoded
            stop = start + len(encoded.tokens)
            assert stop <= end, "a pack is longer than its sequence"
            tokens[start:stop] = encoded.tokens
            labels[start:stop] = encoded.labels
            loss_weights[start:stop] = _loss_weights(sample, loss_weighting)
            source_numbers[start:stop] = sample.source_number
            image_mask[start:stop] = encoded.image_mask
            position_ids[start:stop] = np.arange(stop - start)
            tiles.append(sample.tiles)
            starts.append(start)
            documents.append((start, encoded))
            start = stop
        if start < end:
            position_ids[start:end] = np.arange(end - start)
            starts.append(start)
    return MicroBatch(
        tokens=torch.from_numpy(tokens)[None],
        labels=torch.from_numpy(labels)[None],
        loss_weights=torch.from_numpy(loss_weights)[None],
        source_numbers=torch.from_numpy(source_numbers)[None],
        position_ids=torch.from_numpy(position_ids)[None],
        image_mask=torch.from_numpy(image_mask)[None],
        cu_seqlens=torch.tensor([*starts, num_tokens], dtype=torch.int32),
        tiles=torch.from_numpy(np.concatenate(tiles)),
        sample_keys=[sample.key for samples in sequences for sample in samples],
        num_real_tokens=int((source_numbers >= 0).sum()),
        num_real_token_pairs=sum(len(encoded.tokens) ** 2 for _, encoded in documents),
        beside=_row_beside(documents) if has_beside else None,
        gated=_gated(documents, num_tokens),
        grids=tuple(grid for _, encoded in documents for grid in encoded.grids),
    )


def _gated(samples: Sequence[tuple[int, EncodedSample]], num_tokens: int) -> Gated | None:
    """What the gate reads of the samples, with each where it begins; None without a gate."""
    read = [(start, sample.alignment) for start, sample in samples if sample.alignment is not None]
    if not read:
        return None
    positions: list[int] = []
    of_tokens = np.full(num_tokens, -1, np.int64)
    of_tiles = []
    for start, alignment in read:
        number = len(positions)
        of_tokens[start : start + len(alignment.text)][alignment.text] = number
        of_tiles.append(np.where(alignment.tiles, number, -1))
        if alignment.position is not None:
            positions.append(start + alignment.position)
    return Gated(
        positions=torch.tensor(positions, dtype=torch.int64),
        of_tokens=torch.from_numpy(of_tokens),
        of_tiles=torch.from_numpy(np.concatenate(of_tiles)),
    )


def _row_beside(samples: Sequence[tuple[int, EncodedSample]]) -> Beside:
    """The samples' rows beside, one after another; with each where it begins in the decoder's."""
    tokens, image_mask = [np.zeros(0, np.int64)], [np.zeros(0, np.bool_)]
    tiles, sights = [np.zeros(0, np.int64)], []
    num_tokens = num_tiles = 0
    for start, sample in samples:
        beside = sample.beside
        assert beside is not None, "the samples of a decoder that reads beside its row"
        tokens.append(beside.tokens)
        image_mask.append(beside.image_mask)
        tiles.append(beside.tiles + num_tiles)
        sights += [
            (start + first, start + end, num_tokens + seen, num_tokens + last)
            for first, end, seen, last in beside.sights
        ]
        num_tokens += len(beside.tokens)
        num_tiles += beside.num_tiles
    return Beside(
        tokens=torch.from_numpy(np.concatenate(tokens))[None],
        image_positions=torch.from_numpy(np.concatenate(image_mask).nonzero()[0]),
        tiles=torch.from_numpy(np.concatenate(tiles)),
        sights=tuple(sights),
    )


def _loss_weights(sample: PackedSample, loss_weighting: str) -> NDArray[np.float32]:
    """What each position counts, [t]: the sample's weight, divided by the sample's number of
    trained tokens (`sample`) or its square root (`sqrt_length`)."""
    trained = sample.encoded.labels != IGNORED_LABEL
    divisor = loss_divisor(trained.sum(), loss_weighting)
    return trained.astype(np.float32) * np.float32(sample.loss_weight / divisor)


def loss_divisor(num_trained: NDArray | np.integer, loss_weighting: str) -> NDArray | np.floating:
    """What the weights of a sample's tokens are divided by, from how many of them are trained."""
    exponent = {"token": 0.0, "sample": 1.0, "sqrt_length": 0.5}[loss_weighting]
    return np.maximum(num_trained, 1) ** exponent
