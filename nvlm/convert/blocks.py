"""Rows of a tensor, as many as are held at a time: what keeps a conversion's memory small."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

# Small beside a large model's tensors, and near the size of a processor's cache; large enough that
# a checkpoint does not consist of too many pieces.
BLOCK_BYTES = 16 * 2**20


class Buffer:
    """Memory for one block, used again for the next: fresh pages cost more time than a disk does.

    A tensor from it is valid until the next one is taken.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of unset values, with a storage of exactly its size."""
        count = prod(shape)
        num_bytes = count * dtype.itemsize
        if not count:
            return torch.empty(shape, dtype=dtype)
        if self._bytes.numel() < num_bytes:
            self._bytes = torch.empty(num_bytes, dtype=torch.uint8)
        memory = self._bytes.numpy().data[:num_bytes]
        return torch.frombuffer(memory, dtype=dtype, count=count).view(shape)


def row_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> list[tuple[int, int]]:
    """Ranges of rows (first, one past the last) of at most `BLOCK_BYTES`, or of one row."""
    bytes_per_row = prod(shape[1:]) * dtype.itemsize
    rows = max(1, BLOCK_BYTES // max(1, bytes_per_row))
    return [(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def in_blocks(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's rows as views of at most `BLOCK_BYTES`, or of one row."""
    for start, stop in row_blocks(tuple(tensor.shape), tensor.dtype):
        yield tensor[start:stop]


def as_dtype(tensor: Tensor, dtype: torch.dtype, buffer: Buffer) -> Tensor:
    """`tensor` rounded to `dtype`, in `buffer` where that takes a copy."""
    if tensor.dtype == dtype:
        return tensor
    return buffer.take(tuple(tensor.shape), dtype).copy_(tensor)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied where it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass, no memory (both show in the extremes)."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))
