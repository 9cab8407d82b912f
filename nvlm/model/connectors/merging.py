"""Fewer tokens of a tile, by merging those that are alike. Nothing is trained for it.

Before a language model reads them, as AIM does (Zhong et al. 2024, arXiv 2412.03248, its merging
before the LLM), with the bipartite soft matching of ToMe (Bolya et al. 2023, arXiv 2210.09461):
tokens in turns belong to two sets, each token of the first finds the one of the second
that is most like it, and the most alike of these pairs become one token each. A round merges at
most half of the tokens; there are as many rounds as it takes.

Shape suffixes: n tiles, q tokens of a tile, a and b tokens of the two sets, h hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def merge_tokens(features_nqh: Tensor, num_kept: int) -> Tensor:
    """[n, q, h] -> [n, num_kept, h], what is kept in its order, in the type that came in.

    A merged token is the mean of all tokens that it stands for, and has the place of the one of
    them that others were merged into. Computed in fp32, and without sums whose order a device
    chooses, so that the processes of a tensor-parallel group come to the same tokens.
    """
    assert 1 <= num_kept <= features_nqh.shape[1]
    if num_kept == features_nqh.shape[1]:
        return features_nqh
    tokens_nqh = features_nqh.float()
    counts_nq = tokens_nqh.new_ones(tokens_nqh.shape[:2])
    while (num_over := tokens_nqh.shape[1] - num_kept) > 0:
        tokens_nqh, counts_nq = _merge_once(tokens_nqh, counts_nq, num_over)
    return tokens_nqh.to(features_nqh.dtype)


def _merge_once(tokens_nqh: Tensor, counts_nq: Tensor, num_over: int) -> tuple[Tensor, Tensor]:
    num_tiles, num_tokens, width = tokens_nqh.shape
    num_merged = min(num_over, num_tokens // 2)
    directions = functional.normalize(tokens_nqh, dim=-1)
    alike_nab = directions[:, ::2] @ directions[:, 1::2].transpose(1, 2)
    best_na, partner_na = alike_nab.max(dim=-1)
    # Stable, so that of pairs that are equally alike the first are merged.
    merged = best_na.argsort(dim=-1, descending=True, stable=True)[:, :num_merged]
    is_merged_na = torch.zeros_like(best_na, dtype=torch.bool).scatter_(1, merged, True)

    # [n, a, b]: how many tokens each of the first set brings to each of the second.
    brought = functional.one_hot(partner_na, num_tokens // 2).to(counts_nq.dtype)
    brought = brought * (counts_nq[:, ::2] * is_merged_na)[:, :, None]
    counts_nb = counts_nq[:, 1::2] + brought.sum(1)
    sums_nbh = tokens_nqh[:, 1::2] * counts_nq[:, 1::2, None]
    sums_nbh = sums_nbh + brought.transpose(1, 2) @ tokens_nqh[:, ::2]

    tokens, counts = tokens_nqh.clone(), counts_nq.clone()
    tokens[:, 1::2] = sums_nbh / counts_nb[:, :, None]
    counts[:, 1::2] = counts_nb
    is_kept = torch.ones_like(counts, dtype=torch.bool)
    is_kept[:, ::2] = ~is_merged_na
    # Kept places before the others, each in their order: masks would make the host wait.
    places = is_kept.int().argsort(dim=1, descending=True, stable=True)
    places = places[:, : num_tokens - num_merged]
    wide = places[:, :, None].expand(num_tiles, -1, width)
    return tokens.gather(1, wide), counts.gather(1, places)
