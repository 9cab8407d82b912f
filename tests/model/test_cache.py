"""Rows of the cache: their lengths, and what is kept where rows come and go."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import small_model

from nvlm.parallel.groups import initialize, shut_down

LENGTHS = [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


@pytest.fixture(scope="module", autouse=True)
def megatron():
    """Which may only be imported once the platform was chosen."""
    initialize(small_model.small_config(), world_size=1)
    yield
    shut_down()


def layers():
    from nvlm.model.parts.cache import LayerShape

    return [LayerShape(3, 2, 4, torch.float32), LayerShape(4, 2, 4, torch.float32)]


def test_lengths_of_rows():
    from nvlm.model.parts.cache import row_length

    assert sorted({row_length(count) for count in range(1, 4097)}) == LENGTHS
    for count in range(257, 4097):
        assert count <= row_length(count) < count * 1.5
    assert [row_length(length) for length in LENGTHS] == LENGTHS


def test_rows_keep_what_they_hold():
    """Each question's number stands in its row, whatever comes, goes and moves."""
    from nvlm.model.parts.cache import KeyValueCache, row_length

    chance, most = random.Random(2), 6000
    cache = KeyValueCache(layers(), max_tokens=most)
    lengths: dict[int, int] = {}
    most_used = 0
    for number in range(300):
        wanted = chance.choice([100, 300, 700, 1200])
        while not cache.fits(wanted):
            gone = chance.choice(list(lengths))
            shelf = next(shelf for shelf in cache.shelves() if gone in shelf.owners)
            shelf.remove(shelf.owners.index(gone))
            del lengths[gone]
        shelf, row = cache.take(number, wanted)
        for layer in (3, 4):
            shelf.keys[layer][row] = number
            shelf.values[layer][row] = -number - layer
        lengths[number] = row_length(wanted)
        assert cache.num_tokens == sum(lengths.values()) <= most
        assert cache.num_tokens <= cache.num_allocated_tokens <= most
        most_used = max(most_used, cache.num_tokens)
        found = {}
        for shelf in cache.shelves():
            for row, owner in enumerate(shelf.owners):
                found[owner] = shelf.length
                for layer in (3, 4):
                    assert (shelf.keys[layer][row] == owner).all()
                    assert (shelf.values[layer][row] == -owner - layer).all()
        assert found == lengths
    assert most_used > 0.9 * most


def test_new_rows_hold_numbers():
    """What a row has never held is multiplied by zero: not by what was in the memory before."""
    from nvlm.model.parts.cache import KeyValueCache

    spoilt = [torch.full((64, 1024), float("nan")) for _ in range(8)]
    del spoilt
    cache = KeyValueCache(layers(), max_tokens=10**5)
    for number in range(20):
        shelf, _ = cache.take(number, 250)
    assert all(memory.isfinite().all() for memory in [*shelf.keys.values(), *shelf.values.values()])
