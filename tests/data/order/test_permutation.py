"""Shuffling without a buffer: permutations, near-sequential, of any size, and well mixed."""

from __future__ import annotations

import numpy as np
import pytest

from nvlm.data.order.permutation import Permutation, SampleOrder, derive_key, shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 1000, 4097])
def test_permutation_and_its_inverse(size: int):
    permutation = Permutation(size, 5)
    values = permutation(np.arange(size))
    assert sorted(values.tolist()) == list(range(size))
    assert permutation.inverse(values).tolist() == list(range(size))
    if size > 10:
        assert values.tolist() != Permutation(size, 6)(np.arange(size)).tolist()


def test_permutation_of_three_is_any_of_six():
    counts = {}
    for key in range(3000):
        order = tuple(Permutation(3, key)(np.arange(3)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6 and min(counts.values()) > 400


# Around the sizes where slices grow and windows end.
@pytest.mark.parametrize("size", [1, 5, 4096, 4097, 8191, 8193, 12289, 262145, 300001])
def test_every_sample_once_per_pass(size: int):
    rows, epochs = SampleOrder(size, 1, "source").rows(0, 2 * size)
    for epoch in range(2):
        assert sorted(rows[epochs == epoch].tolist()) == list(range(size))
    assert (epochs == np.arange(2 * size) // size).all()
    if size > 4:
        assert rows[:size].tolist() != rows[size:].tolist()
    # Any stretch, asked for in any order, is the same.
    order = SampleOrder(size, 1, "source")
    for start in np.random.default_rng(0).integers(0, 2 * size, 20).tolist():
        stop = min(2 * size, start + 37)
        assert order.rows(start, stop)[0].tolist() == rows[start:stop].tolist()


def test_order_depends_on_the_key_and_nothing_else():
    first = SampleOrder(5000, 1, "a").rows(0, 5000)[0]
    assert (first == SampleOrder(5000, 1, "a").rows(0, 5000)[0]).all()
    for other in (SampleOrder(5000, 2, "a"), SampleOrder(5000, 1, "b")):
        assert (first == other.rows(0, 5000)[0]).mean() < 0.01
    # Kept, so that no library and no edit changes the data of a run that goes on.
    assert SampleOrder(10, 1234, "a").rows(0, 10)[0].tolist() == [6, 5, 0, 1, 3, 4, 8, 7, 2, 9]
    assert shuffled(6, 1234, "x").tolist() == [0, 5, 3, 2, 4, 1]
    assert derive_key("a", 1) != derive_key("a1") != derive_key("a", "1")


def test_small_source_is_shuffled_sample_by_sample():
    rows, _ = SampleOrder(2000, 3).rows(0, 2000)
    # Of a random order, the mean distance of neighbours is a third of the size.
    assert abs(np.abs(np.diff(rows)).mean() / 2000 - 1 / 3) < 0.02
    assert abs(np.corrcoef(rows, np.arange(2000))[0, 1]) < 0.1


def test_large_source_is_read_in_stretches_and_still_mixed():
    order = SampleOrder(10**8, 3)
    rows, _ = order.rows(50_000_000, 50_000_000 + 4096)
    # Draws close in time come from a few stretches of 64 samples ...
    slices = set((rows // 64).tolist())
    assert len(slices) <= 2 * 64 + 2
    # ... that lie all over the source, and neighbours in time are rarely neighbours in the shards.
    assert max(slices) - min(slices) > 0.8 * 10**8 / 64
    assert (np.abs(np.diff(rows)) < 64).mean() < 0.05
