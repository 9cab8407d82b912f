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


def a_layer():
    """What a context asks of a layer."""
    from types import SimpleNamespace

    core = SimpleNamespace(softmax_scale=None)
    return SimpleNamespace(layer_number=3, core_attention=core)


def test_a_token_has_a_place_in_its_row_and_a_position():
    """Where a prompt's keys are fewer than its tokens: what it reads and how it is rotated."""
    from nvlm.model.parts.cache import Decode, KeyValueCache, rotated

    generator = torch.Generator().manual_seed(5)
    cache = KeyValueCache(layers(), max_tokens=2000)
    num_kept, num_tokens = [5, 2], [41, 30]
    for owner in range(2):
        shelf, _ = cache.take(owner, 100)
    for memory in (shelf.keys[3], shelf.values[3]):
        memory.copy_(torch.randn(memory.shape, generator=generator))
    before = shelf.keys[3].clone(), shelf.values[3].clone()
    query = torch.randn(1, 2, 4, 4, generator=generator)
    key, value = torch.randn(2, 1, 2, 2, 4, generator=generator)
    angles = torch.randn(50, 1, 1, 4, generator=generator)
    places, positions = torch.tensor(num_kept), torch.tensor(num_tokens)
    context = Decode([(shelf, num_kept)], places, positions, torch.float32, 50)
    found = context.attend(a_layer(), query, key, value, angles).view(2, 4, 4)
    for row, (kept, position) in enumerate(zip(num_kept, num_tokens, strict=True)):
        turn = angles[position, 0].cos(), angles[position, 0].sin()
        turned = rotated(key[0, row], *turn)
        assert torch.equal(shelf.keys[3][row, :, kept], turned)
        for head in range(4):
            keys = torch.cat([before[0][row, head // 2, :kept], turned[head // 2][None]])
            values = torch.cat([before[1][row, head // 2, :kept], value[0, row, head // 2][None]])
            weights = (keys @ rotated(query[0, row, head], *(t[0] for t in turn)) / 2).softmax(0)
            torch.testing.assert_close(found[row, head], weights @ values)


def test_a_prompt_leaves_what_eviction_leaves_of_it():
    """Of the rotated keys, with the layer's scale; the prompt itself reads all."""
    from nvlm.model.parts.cache import KeyValueCache, Prefill, rotated
    from nvlm.model.parts.eviction import evict

    generator = torch.Generator().manual_seed(6)
    shelf, row = KeyValueCache(layers(), max_tokens=2000).take(0, 100)
    query = torch.randn(30, 1, 4, 4, generator=generator)
    key, value = torch.randn(2, 30, 1, 2, 4, generator=generator)
    angles = torch.randn(50, 1, 1, 4, generator=generator)
    is_visual = torch.arange(30) < 20
    layer, read = a_layer(), []
    layer.core_attention = lambda query, key, value, *_, **__: read.append((query, key, value))
    Prefill(shelf, row, 50, 12, is_visual).attend(layer, query, key, value, angles)
    turn = angles[:30].cos(), angles[:30].sin()
    turned, turned_key = rotated(query, *turn), rotated(key, *turn)
    assert all(map(torch.equal, read[0], (turned, turned_key, value)))
    by_head = torch.stack([turned[:, 0, [0, 1]], turned[:, 0, [2, 3]]]).transpose(1, 2) / 2
    keys, values = turned_key[:, 0].transpose(0, 1), value[:, 0].transpose(0, 1)
    for memory, expected in zip(
        (shelf.keys, shelf.values), evict(by_head, keys, values, is_visual, 12), strict=True
    ):
        torch.testing.assert_close(memory[3][row, :, :12], expected)
        assert not memory[3][row, :, 12:].any()
