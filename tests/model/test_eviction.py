"""Keys and values that stay of a prompt, beside slow loops over heads and tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nvlm.model.parts import eviction
from nvlm.model.parts.eviction import evict, received_attention

GROUPS, PER_GROUP, NUM_TOKENS, CHANNELS = 2, 3, 40, 8


@pytest.fixture(params=[7, 1024], ids=["many blocks", "one block"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(eviction, "_BLOCK", request.param)


def a_prompt(num_visual: int = 25) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Its images are tokens 5, 6, ..., of which the first are more attended to."""
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(GROUPS, PER_GROUP, NUM_TOKENS, CHANNELS, generator=generator)
    key, value = torch.randn(2, GROUPS, NUM_TOKENS, CHANNELS, generator=generator)
    places = torch.arange(NUM_TOKENS)
    return query, key, value, (places >= 5) & (places < 5 + num_visual)


def attention_slowly(query: Tensor, key: Tensor) -> Tensor:
    total = torch.zeros(GROUPS, NUM_TOKENS)
    for group in range(GROUPS):
        for head in range(PER_GROUP):
            for place in range(NUM_TOKENS):
                scores = query[group, head, place] @ key[group, : place + 1].T
                total[group, : place + 1] += scores.exp() / scores.exp().sum()
    return total


def test_attention_of_all_queries_of_a_head(blocks):
    query, key, _, _ = a_prompt()
    found = received_attention(query, key)
    torch.testing.assert_close(found, attention_slowly(query, key))
    torch.testing.assert_close(found.sum(), torch.tensor(1.0 * GROUPS * PER_GROUP * NUM_TOKENS))


@pytest.mark.parametrize("num_kept", [3, 15, 16, 24, 39])
def test_as_a_slow_loop_has_it(num_kept, blocks):
    """Fewer than there is text, as much, and more."""
    query, key, value, is_visual = a_prompt()
    attention = attention_slowly(query, key)
    found = evict(query, key, value, is_visual, num_kept)
    first_recent = NUM_TOKENS - num_kept // 8
    for group in range(GROUPS):

        def worth(place: int, group: int = group) -> tuple:
            return (
                not is_visual[place],
                place >= first_recent,
                float(attention[group, place]),
            )

        kept = sorted(sorted(range(NUM_TOKENS), key=worth)[-num_kept:])
        expected = {place: [(key[group, place], value[group, place])] for place in kept}
        for place in set(range(NUM_TOKENS)) - set(kept):
            alike = [torch.cosine_similarity(key[group, place], key[group, k], 0) for k in kept]
            to = kept[int(torch.stack(alike).argmax())]
            expected[to].append(
                (
                    (key[group, place] + key[group, to]) / 2,
                    (value[group, place] + value[group, to]) / 2,
                )
            )
        for number, which in enumerate(("keys", "values")):
            means = [torch.stack([e[number] for e in some]).mean(0) for some in expected.values()]
            torch.testing.assert_close(found[number][group], torch.stack(means), msg=which)


def test_text_that_nothing_is_merged_into_stays_as_it_is():
    query, key, value, is_visual = a_prompt()
    # Images are unlike text: their keys point elsewhere.
    key[:, :, 0] = torch.where(is_visual, 50.0, -50.0)
    keys, values = evict(query, key, value, is_visual, 20)
    for found, given in ((keys, key), (values, value)):
        assert torch.equal(found[:, :5], given[:, :5]) and torch.equal(
            found[:, -10:], given[:, -10:]
        )
        assert not torch.equal(found[:, 5:10], given[:, 5:10])


def test_all_are_kept_as_they_are():
    query, key, value, is_visual = a_prompt()
    assert evict(query, key, value, is_visual, NUM_TOKENS) == (key, value)
