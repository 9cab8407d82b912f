"""Attention of packed documents whose tokens context-parallel ranks share, without a GPU.

On a GPU Transformer Engine's attention does this, over the same parts of the documents; see
`nvlm.parallel.context`. Here each rank gathers keys and values of the whole row and attends its own
queries to them: a chunk of a document to all chunks before it, and causally to itself. The two are
put together by their sums of exponentials, so that no mask is made, and what is kept for the
backward pass is as long as the part; there keys and values are gathered again.

Shape suffixes: t tokens of this rank, T of all ranks, h query heads, g key/value heads, d channels
per head, s query positions, k key positions, b = 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Chunk(NamedTuple):
    """Consecutive queries of this rank, and where in the row they and their document begin."""

    own: int  # of this rank's tokens
    length: int
    start: int  # of the row
    document: int

    @property
    def queries(self) -> slice:
        return slice(self.own, self.own + self.length)

    def pieces(self) -> Iterator[tuple[slice, bool]]:
        """Keys that the queries see, and whether each query sees them up to its own alone."""
        if self.start > self.document:
            yield slice(self.document, self.start), False
        yield slice(self.start, self.start + self.length), True


def chunks_of(starts: Sequence[int], rank: int, size: int) -> Iterator[Chunk]:
    """Those of a rank; `starts` are the documents' in the row, each a multiple of 2 x `size`."""
    own = 0
    for start, end in pairwise(starts):
        length = (end - start) // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            yield Chunk(own, length, start + number * length, start)
            own += length


def attend_in_context(
    query_thd: Tensor,
    key_tgd: Tensor,
    value_tgd: Tensor,
    starts: Sequence[int],
    row_order: Tensor,
    scale: float | None,
    group: dist.ProcessGroup,
) -> Tensor:
    """[t, h, d]: causal attention within documents, of this rank's queries.

    Args:
        starts: of the documents in the row, and where it ends.
        row_order: [T] where in all ranks' parts, one after the other, the row's tokens are.
    """
    keys_values = torch.stack([key_tgd, value_tgd], 1)
    return _Attention.apply(query_thd, keys_values, starts, row_order, scale, group)  # type: ignore[return-value]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        keys_values: Tensor,
        starts: Sequence[int],
        row_order: Tensor,
        scale: float | None,
        group: dist.ProcessGroup,
    ) -> Tensor:
        """query_thd, keys_values [t, 2, g, d]"""
        chunks = [*chunks_of(starts, group.rank(), group.size())]
        key, value = _gathered(keys_values, row_order, group)
        output = torch.empty_like(query)
        # [t, h]: the logarithm of each query's sum of exponentials.
        sums = query.new_empty(query.shape[:2], dtype=torch.float32)
        for chunk in chunks:
            found = [
                _attend(
                    _bhsd(query[chunk.queries]), key[:, :, keys], value[:, :, keys], causal, scale
                )
                for keys, causal in chunk.pieces()
            ]
            total = torch.stack([part_sums for _, part_sums in found]).logsumexp(0)
            parts = [
                part.float() * (part_sums - total).exp().unsqueeze(-1) for part, part_sums in found
            ]
            whole = torch.stack(parts).sum(0)
            output[chunk.queries] = whole[0].transpose(0, 1).to(query.dtype)
            sums[chunk.queries] = total[0].transpose(0, 1)
        ctx.save_for_backward(query, keys_values, output, sums, row_order)
        ctx.chunks, ctx.scale, ctx.group = chunks, scale, group
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        query, keys_values, output, sums, row_order = ctx.saved_tensors
        key, value = _gathered(keys_values, row_order, ctx.group)
        of_query = torch.zeros_like(query, dtype=torch.float32)
        # As they are gathered: [1, g, T, d] of keys and of values.
        of_key, of_value = (torch.zeros_like(key, dtype=torch.float32) for _ in range(2))
        for chunk in ctx.chunks:
            mine = chunk.queries
            for keys, causal in chunk.pieces():
                gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    _bhsd(gradient[mine]),
                    _bhsd(query[mine]),
                    key[:, :, keys],
                    value[:, :, keys],
                    _bhsd(output[mine]),
                    _bhsd(sums[mine].unsqueeze(-1)).squeeze(-1),
                    0.0,
                    causal,
                    scale=ctx.scale,
                )
                of_query[mine] += gradients[0][0].transpose(0, 1)
                of_key[:, :, keys] += gradients[1]
                of_value[:, :, keys] += gradients[2]
        whole = torch.stack([of_key[0].transpose(0, 1), of_value[0].transpose(0, 1)], 1)
        in_parts = torch.empty_like(whole)
        in_parts[row_order] = whole
        of_keys_values = torch.empty_like(keys_values, dtype=torch.float32)
        dist.reduce_scatter_tensor(of_keys_values, in_parts, group=ctx.group)
        return of_query.to(query.dtype), of_keys_values.to(keys_values.dtype), *[None] * 4


def _attend(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """[b, h, s, d], and the logarithms of the sums of exponentials, [b, h, s]."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, scale=scale
    )


def _gathered(
    keys_values: Tensor, row_order: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Of all ranks, in the order of the row: keys and values, each [1, g, T, d]."""
    everyones = keys_values.new_empty(len(row_order), *keys_values.shape[1:])
    dist.all_gather_into_tensor(everyones, keys_values, group=group)
    key, value = everyones.index_select(0, row_order).unbind(1)
    return _bhsd(key), _bhsd(value)


def _bhsd(tensor_thd: Tensor) -> Tensor:
    return tensor_thd.transpose(0, 1).unsqueeze(0)
