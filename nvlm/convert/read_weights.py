"""A Hugging Face folder's tensors, straight into a model at any layout: no checkpoint is written.

Each process reads the rows of its own shards. Where tensor-parallel ranks share columns, each reads
all rows, a few at a time; tensors with zero heads (of the vision encoder) are read whole.
Data-parallel ranks read a share each, and send it to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm.checkpoint_io import on_every_rank
from nvlm.checkpoint_shares import by_group, shares
from nvlm.convert.blocks import row_blocks
from nvlm.convert.hf.folder import HfFolder
from nvlm.convert.hf.sources import Source
from nvlm.convert.rules import Rule, to_megatron

if TYPE_CHECKING:  # Megatron-core is imported behind the platform
    from megatron.core.dist_checkpointing.mapping import ShardedTensor


def read_weights(
    source: Source, tensors: Sequence[ShardedTensor], alike: Callable[[str], dist.ProcessGroup]
) -> None:
    """Fill `tensors`; every rank of the run calls this.

    Args:
        source: whose rules have all their keys; see `open_released`.
        tensors: of a model, one part of a SwiGLU each (`checkpoint_shares.sharded_tensors`).
        alike: of a tensor's key, the ranks that hold what this one holds of it (`Parallel.alike`).

    Raises:
        ConvertError: a tensor cannot be read, or holds what it should not; the same on every rank.
    """
    rules = {rule.key: rule for rule in source.rules}
    shared = [
        (tensor, group, reader)
        for group, held in by_group(tensors, alike).items()
        for tensor, reader in zip(held, shares([*map(_num_bytes, held)], group.size()), strict=True)
    ]

    def read() -> None:
        maps: dict[str, Tensor] = {}
        for tensor, group, reader in shared:
            if reader == group.rank():
                _fill(rules[tensor.key], tensor, source.folder, maps)

    with torch.no_grad():
        on_every_rank(read)
        for tensor, group, reader in shared:
            if group.size() > 1:
                # As bytes, which every backend sends.
                data = _data(tensor).view(-1).view(torch.uint8)
                dist.broadcast(data, src=dist.get_global_rank(group, reader), group=group)


def _num_bytes(tensor: ShardedTensor) -> int:
    return _data(tensor).numel() * _data(tensor).element_size()


def _data(tensor: ShardedTensor) -> Tensor:
    assert tensor.data is not None
    return tensor.data.detach()


def _fill(rule: Rule, tensor: ShardedTensor, folder: HfFolder, maps: dict[str, Tensor]) -> None:
    place = rule.parameter.place(tensor.global_offset[: tensor.prepend_axis_num])
    here = tensor.global_slice()[tensor.prepend_axis_num :]
    target = _data(tensor).view(tensor.local_shape)
    if rule.parameter.zero_heads is not None:
        target.copy_(to_megatron(rule, place, folder.read, folder.path)[here])
        return
    if rule.key not in maps:
        maps[rule.key] = _row_map(rule)
    rows, *columns = here
    filled = 0
    for name, start, stop in _runs(rule.names(place), rule.sources, maps[rule.key][rows]):
        block = folder.read_rows(name, start, stop)[(slice(None), *columns)]
        target[filled : filled + len(block)].copy_(block)
        filled += len(block)
    assert filled == len(target), (rule.key, filled, len(target))


def _row_map(rule: Rule) -> Tensor:
    """[rows] int64: which row of the sources, one source below the other, each row is."""
    sizes = [shape[0] for shape in rule.sources.values()]
    return rule.layout.join(torch.arange(sum(sizes)).split(sizes))


def _runs(
    names: Sequence[str], sources: Mapping[str, tuple[int, ...]], rows: Tensor
) -> Iterator[tuple[str, int, int]]:
    """Rows that follow each other, as ranges of one source, each small enough to be read at once.

    Args:
        rows: numbers as in `_row_map`.
    """
    ends = [0, *(((rows[1:] - rows[:-1]) != 1).nonzero()[:, 0] + 1).tolist(), len(rows)]
    first_of = 0
    bounds = []
    for name, shape in zip(names, sources.values(), strict=True):
        bounds.append((name, shape, first_of))
        first_of += shape[0]
    for begin, end in pairwise(ends):
        position, last = int(rows[begin]), int(rows[end - 1]) + 1
        for name, shape, first in bounds:
            start, stop = max(position, first) - first, min(last, first + shape[0]) - first
            if start < stop:
                for low, high in row_blocks((stop - start, *shape[1:]), torch.float32):
                    yield name, start + low, start + high
