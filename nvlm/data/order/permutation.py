"""Shuffling without a buffer: permutations that are computed, not stored.

`SampleOrder` gives the order of one pass over a source. The source is cut into slices of
consecutive samples; a keyed permutation of the slices and then a keyed order of the samples inside
blocks of several slices decide. So the samples that are drawn together lie in a few stretches of
the shards, which disks, page caches and object stores serve well, and a pass over 100 million
samples takes no more memory than one over a thousand.

The permutation of slices is a Feistel network over the next power of four, walked until it falls
inside the range (Black and Rogaway, Ciphers with arbitrary finite domains, 2002). Everything is
integer arithmetic of our own, so an order never changes with a library's version.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

# Samples whose order inside a block is fully random.
_BLOCK_SIZE = 4096
# Slices are this long, and shorter in sources of fewer than _MIN_SLICES such slices: a small
# source is shuffled sample by sample.
_SLICE_SIZE = 64
_MIN_SLICES = 4096
_NUM_ROUNDS = 6

Integers = NDArray[np.int64]


def derive_key(*parts: int | str) -> int:
    """A 64-bit key, different for each tuple of parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def mix(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """64 hashed bits of each value (the finaliser of SplitMix64)."""
    mixed = values ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def shuffled(size: int, *key_parts: int | str) -> Integers:
    """The numbers below `size` in a random order. Stores it; for small sizes."""
    hashes = mix(np.arange(1, size + 1, dtype=np.uint64), derive_key(*key_parts))
    return np.argsort(hashes, kind="stable")


class Permutation:
    """A keyed permutation of the numbers below `size`, in O(1) memory, and its inverse."""

    def __init__(self, size: int, key: int):
        assert size > 0
        self.size = size
        half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_bits = np.uint64(half_bits)
        self._mask = np.uint64((1 << half_bits) - 1)
        self._keys = [derive_key(key, number) for number in range(_NUM_ROUNDS)]

    def __call__(self, positions: Integers) -> Integers:
        return self._walk(positions, self._forward)

    def inverse(self, values: Integers) -> Integers:
        return self._walk(values, self._backward)

    def _walk(self, start: Integers, step) -> Integers:
        values = step(start.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = step(values[outside])
        return values.astype(np.int64)

    def _forward(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (mix(right, key) & self._mask)
        return (left << self._half_bits) | right

    def _backward(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._mask
        for key in reversed(self._keys):
            left, right = right ^ (mix(left, key) & self._mask), left
        return (left << self._half_bits) | right


class SampleOrder:
    """The order of a source's samples in every pass over it.

    Position p of pass e is a function of (key, number of samples, e, p); within a pass every
    sample stands once. Keeps the block that was last used.
    """

    def __init__(self, num_samples: int, *key_parts: int | str):
        assert num_samples > 0
        self.num_samples = num_samples
        self._key = derive_key(*key_parts)
        self._slice_size = min(_SLICE_SIZE, max(1, num_samples // _MIN_SLICES))
        self._num_slices = -(-num_samples // self._slice_size)
        self._slices_per_block = _BLOCK_SIZE // self._slice_size
        self._epoch, self._block = -1, -1
        self._slices = Permutation(1, 0)
        self._short_position = 0
        self._first, self._rows = 0, np.zeros(0, np.int64)

    def rows(self, start: int, stop: int) -> tuple[Integers, Integers]:
        """(rows, passes) of the draws `start` to `stop` from this source, counted from 0."""
        rows = np.empty(stop - start, np.int64)
        epochs = np.empty(stop - start, np.int64)
        done = 0
        while done < len(rows):
            epoch, position = divmod(start + done, self.num_samples)
            self._load_block(epoch, position)
            offset = position - self._first
            part = self._rows[offset : offset + len(rows) - done]
            rows[done : done + len(part)] = part
            epochs[done : done + len(part)] = epoch
            done += len(part)
        return rows, epochs

    def _load_block(self, epoch: int, position: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._block = epoch, -1
            self._slices = Permutation(self._num_slices, derive_key(self._key, "slices", epoch))
            last = np.array([self._num_slices - 1])
            self._short_position = int(self._slices.inverse(last)[0])
        # All slices have the same size but the source's last one, wherever it stands in this pass:
        # the positions after it move up by what it lacks.
        lacking = self._num_slices * self._slice_size - self.num_samples
        slice_number = position // self._slice_size
        if slice_number >= self._short_position:
            moved = (position + lacking) // self._slice_size
            slice_number = max(self._short_position, moved)
        block = slice_number // self._slices_per_block
        if block == self._block:
            return
        self._block = block
        first_slice = block * self._slices_per_block
        stop_slice = min(first_slice + self._slices_per_block, self._num_slices)
        self._first = first_slice * self._slice_size
        if first_slice > self._short_position:
            self._first -= lacking
        slices = self._slices(np.arange(first_slice, stop_slice))
        rows = (slices[:, None] * self._slice_size + np.arange(self._slice_size)).ravel()
        rows = rows[rows < self.num_samples]
        hashes = mix(rows.astype(np.uint64), derive_key(self._key, "samples", epoch))
        self._rows = rows[np.argsort(hashes, kind="stable")]
