"""The row of tokens that packed samples become, and what each token counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nvlm.batch import IGNORED_LABEL, MicroBatch
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
) -> MicroBatch:
    """One row of `len(sequences) * sequence_length` tokens.

    Args:
        image_size: pixels; gives the shape of `tiles` where there are none.
        pad_id: token of the padding document that ends a sequence with room left.
        loss_weighting: see `TrainConfig.loss_weighting`.
    """
    num_tokens = len(sequences) * sequence_length
    tokens = np.full(num_tokens, pad_id, np.int64)
    labels = np.full(num_tokens, IGNORED_LABEL, np.int64)
    loss_weights = np.zeros(num_tokens, np.float32)
    source_numbers = np.full(num_tokens, -1, np.int32)
    image_mask = np.zeros(num_tokens, np.bool_)
    position_ids = np.zeros(num_tokens, np.int64)
    starts: list[int] = []
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
            start = stop
        if start < end:
            position_ids[start:end] = np.arange(end - start)
            starts.append(start)
    lengths = [len(sample.encoded.tokens) for samples in sequences for sample in samples]
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
        num_real_tokens=sum(lengths),
        num_real_token_pairs=sum(length**2 for length in lengths),
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
