"""Rotary embedding of packed documents that does not wait for the device.

What is wrong: without a fused kernel Megatron-core 0.16.1 asks the device for the documents'
lengths, for queries and for keys in each layer and again where it is recomputed: the host waits for
all that was queued, four times per layer.
What is done: each token's row of the table of angles is computed where the documents' starts are.
The rows are the same, and so is everything after.
When the pin moves: whether `_apply_rotary_pos_emb_thd` still calls `tolist`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def use_rows_from_device() -> None:
    """Let Megatron-core's unfused rotary embedding of packed documents ask the device nothing."""
    from megatron.core.models.common.embeddings import rope_utils

    rope_utils._apply_rotary_pos_emb_thd = _rotate_packed


def _rotate_packed(
    t: Tensor, cu_seqlens: Tensor, freqs: Tensor, *, cp_group: torch.distributed.ProcessGroup, **how
) -> Tensor:
    """As Megatron-core's: `t` [tokens, heads, channels], `freqs` [longest, 1, 1, channels]."""
    from megatron.core.models.common.embeddings import rope_utils

    positions = positions_in_documents(cu_seqlens, t.shape[0], cp_group.rank(), cp_group.size())
    rows = freqs.index_select(0, positions)
    return rope_utils._apply_rotary_pos_emb_bshd(t.unsqueeze(1), rows, **how).squeeze(1)


def positions_in_documents(
    cu_seqlens: Tensor, num_tokens: int, rank: int = 0, size: int = 1
) -> Tensor:
    """[num_tokens]; each token's distance from the start of its document.

    Args:
        cu_seqlens: of the whole row, of which this is context-parallel rank `rank`'s part: chunks
            `rank` and `2 * size - 1 - rank` of each document (`nvlm.parallel.context`).
    """
    tokens = torch.arange(num_tokens, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    starts = cu_seqlens // size
    documents = torch.bucketize(tokens, starts, right=True) - 1
    positions = tokens - starts.index_select(0, documents)
    if size == 1:
        return positions
    chunks = (starts.diff() // 2).index_select(0, documents)
    behind = torch.where(positions < chunks, rank, 2 * (size - 1) - rank)
    return positions + behind * chunks
