"""Tokens that are merged, beside a slow loop that was written from the papers alone."""

from __future__ import annotations

import math

import pytest
import torch

from nvlm.model.connectors.merging import merge_tokens


def merged_slowly(tokens: list[list[float]], num_kept: int) -> list[list[float]]:
    """ToMe's matching, token by token, until `num_kept` are left."""
    groups = [(1, token) for token in tokens]
    while len(groups) > num_kept:
        pairs = []
        for place in range(0, len(groups), 2):
            likeness, partner = -2.0, -1
            for other in range(1, len(groups), 2):
                found = cosine(groups[place][1], groups[other][1])
                if found > likeness:
                    likeness, partner = found, other
            pairs.append((-likeness, place, partner))
        most = min(len(groups) - num_kept, len(groups) // 2)
        gone = set()
        members: dict[int, list[int]] = {}
        for _, place, partner in sorted(pairs)[:most]:
            gone.add(place)
            members.setdefault(partner, []).append(place)
        after = []
        for place, (count, token) in enumerate(groups):
            if place in gone:
                continue
            total, sums = count, [x * count for x in token]
            for other in members.get(place, []):
                total += groups[other][0]
                sums = [x + y * groups[other][0] for x, y in zip(sums, groups[other][1])]
            after.append((total, [x / total for x in sums]))
        groups = after
    return [token for _, token in groups]


def cosine(first: list[float], second: list[float]) -> float:
    product = sum(x * y for x, y in zip(first, second, strict=True))
    return product / math.sqrt(sum(x * x for x in first) * sum(y * y for y in second))


@pytest.mark.parametrize("num_tokens, num_kept", [(16, 12), (16, 5), (16, 1), (15, 7), (3, 2)])
def test_as_a_slow_loop_has_it(num_tokens, num_kept):
    features = torch.randn(3, num_tokens, 6, generator=torch.Generator().manual_seed(num_kept))
    expected = [merged_slowly(tile, num_kept) for tile in features.double().tolist()]
    found = merge_tokens(features, num_kept)
    assert found.shape == (3, num_kept, 6)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_all_tokens_are_the_tokens_as_they_are():
    features = torch.randn(2, 9, 4).bfloat16()
    assert merge_tokens(features, 9) is features


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_tokens_merge_without_loss(dtype):
    """Pairs of neighbours become one each; many that are equal stay what they are."""
    kinds = torch.eye(4).mul(3).add(0.25).to(dtype)
    found = merge_tokens(kinds.repeat_interleave(2, dim=0)[None], 4)
    assert found.dtype == dtype and torch.equal(found, kinds[None])
    for num_kept in (11, 5, 1):
        assert torch.equal(merge_tokens(kinds[:1].expand(2, 12, 4), num_kept)[1, -1], kinds[0])


def test_a_merged_token_is_the_mean_of_all_that_it_stands_for():
    features = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merge_tokens(features, 1)[:, 0], features.mean(1))


def test_tiles_know_nothing_of_each_other():
    features = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([merge_tokens(tile[None], 6) for tile in features])
    torch.testing.assert_close(merge_tokens(features, 6), alone)
