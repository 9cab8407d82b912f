"""Fewer cached keys and values of a prompt, chosen by attention. Nothing is trained for it.

As LOOK-M does (Wan et al. 2024, arXiv 2406.18139): text comes before images, the end of the prompt
before what is far (how much of it is our choice), and what the prompt's own queries attended to
most before the rest. Each evicted key is merged into the kept one that it is most like, and its
value into that one's value: the paper's pivotal merging, in which what is merged is half the kept
one already.

Shape suffixes: g key/value heads, r query heads of each, s tokens of the prompt, k kept ones,
e evicted ones of a block, d channels per head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Queries, or evicted keys, that are compared with all keys at once.
_BLOCK = 128
# The end of a prompt is this share of what is kept.
_RECENT_SHARE = 0.125


def evict(
    query_grsd: Tensor, key_gsd: Tensor, value_gsd: Tensor, is_visual_s: Tensor, num_kept: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [g, k, d] of `num_kept` tokens, which each head chooses, in their order.

    Args:
        query_grsd: rotated, and scaled as attention scales.
        key_gsd: rotated. So a kept key stands for its position wherever it lies.
        is_visual_s: whether a token is an image's.
    """
    num_tokens = key_gsd.shape[1]
    assert 1 <= num_kept <= num_tokens
    if num_kept == num_tokens:
        return key_gsd, value_gsd
    attention_gs = received_attention(query_grsd, key_gsd)
    num_recent = int(num_kept * _RECENT_SHARE)
    # Text of the end, other text, images of the end, other images.
    rank_s = 2 * (~is_visual_s).long()
    rank_s[num_tokens - num_recent :] += 1
    by_attention = attention_gs.argsort(dim=1, descending=True, stable=True)
    by_rank = rank_s[by_attention].argsort(dim=1, descending=True, stable=True)
    order_gs = by_attention.gather(1, by_rank)
    kept_gk = order_gs[:, :num_kept].sort(dim=1).values
    evicted_ge = order_gs[:, num_kept:]
    partner_ge = _most_alike(key_gsd, kept_gk, evicted_ge)
    return (
        _merged(key_gsd, kept_gk, evicted_ge, partner_ge),
        _merged(value_gsd, kept_gk, evicted_ge, partner_ge),
    )


def received_attention(query_grsd: Tensor, key_gsd: Tensor) -> Tensor:
    """[g, s] fp32: the causal attention that each key gets of all queries of its head together."""
    num_heads, _, num_tokens, _ = query_grsd.shape
    total_gs = key_gsd.new_zeros((num_heads, num_tokens), dtype=torch.float32)
    columns = torch.arange(num_tokens, device=key_gsd.device)
    for start in range(0, num_tokens, _BLOCK):
        end = min(start + _BLOCK, num_tokens)
        seen = key_gsd[:, None, :end].transpose(2, 3)
        scores_grsk = (query_grsd[:, :, start:end] @ seen).float()
        is_later = columns[:end] > columns[start:end, None]
        weights = scores_grsk.masked_fill_(is_later, float("-inf")).softmax(dim=-1)
        total_gs[:, :end] += weights.sum(dim=(1, 2))
    return total_gs


def _most_alike(key_gsd: Tensor, kept_gk: Tensor, evicted_ge: Tensor) -> Tensor:
    """[g, e]: for each evicted key the number, among the kept, of the most alike (cosine)."""
    directions = functional.normalize(key_gsd.float(), dim=-1)
    kept = _taken(directions, kept_gk).transpose(1, 2)
    blocks = evicted_ge.split(_BLOCK, dim=1)
    return torch.cat([(_taken(directions, some) @ kept).argmax(-1) for some in blocks], dim=1)


def _merged(tokens_gsd: Tensor, kept_gk: Tensor, evicted_ge: Tensor, partner_ge: Tensor) -> Tensor:
    """[g, k, d]: of each kept one the mean of it and, for each that is merged into it, of both."""
    kept_gkd = _taken(tokens_gsd, kept_gk).float()
    sums, counts = kept_gkd.clone(), kept_gkd.new_ones(kept_gk.shape)
    for evicted, partner in zip(
        evicted_ge.split(_BLOCK, dim=1), partner_ge.split(_BLOCK, dim=1), strict=True
    ):
        halves = (_taken(tokens_gsd, evicted).float() + _taken(kept_gkd, partner)) / 2
        # A product, not a scattered sum: its order is the same every time.
        goes_to_gek = functional.one_hot(partner, kept_gk.shape[1]).to(sums.dtype)
        sums = sums + goes_to_gek.transpose(1, 2) @ halves
        counts = counts + goes_to_gek.sum(1)
    return (sums / counts[:, :, None]).to(tokens_gsd.dtype)


def _taken(tokens_gsd: Tensor, places_gk: Tensor) -> Tensor:
    return tokens_gsd.gather(1, places_gk[:, :, None].expand(-1, -1, tokens_gsd.shape[-1]))
