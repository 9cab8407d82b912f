"""Weights that several ranks hold alike: each writes and reads a share of them.

What a rank reads it sends to the others, into the place of the weights: nothing is held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import heapify, heapreplace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from nvlm.checkpoint_io import read_sharded
from nvlm.rows import STACKED_EXPERTS

if TYPE_CHECKING:  # Megatron-core is imported behind the platform, which nvlm.model chooses
    from megatron.core.dist_checkpointing.mapping import ShardedTensor


def sharded_tensors(entries: Mapping[str, Any]) -> Iterator[ShardedTensor]:
    """The tensors of a sharded state dict; a SwiGLU's gate and up part one by one.

    Their `data` is the parameter itself or a view of it, so writing to it writes to the model.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    for entry in entries.values():
        parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
        for part in parts:
            assert isinstance(part, ShardedTensor), f"{entry} holds no tensor"
            yield part


def share_writing(
    tensors: Sequence[ShardedTensor], alike: Callable[[str], dist.ProcessGroup]
) -> None:
    """Mark those of `tensors` that this rank is to write.

    What another tensor-parallel rank or pipeline stage writes stays marked as a copy.

    Args:
        alike: of a tensor's key, the ranks that hold what this one holds of it (`Parallel.alike`).
    """
    written = [tensor for tensor in tensors if not any(_replica(tensor, 0))]
    for group, held in by_group(written, alike).items():
        for tensor, rank in zip(held, shares([*map(_num_bytes, held)], group.size()), strict=True):
            tensor.replica_id = _replica(tensor, 0 if rank == group.rank() else 1)


def by_group(
    tensors: Sequence[ShardedTensor], alike: Callable[[str], dist.ProcessGroup]
) -> dict[dist.ProcessGroup, list[ShardedTensor]]:
    """`tensors` by the ranks that hold them alike, in an order that is the same on all of them."""
    found: dict[dist.ProcessGroup, list[ShardedTensor]] = {}
    # Experts last: each rank comes by the groups of one kind before those of the other.
    for tensor in sorted(tensors, key=lambda tensor: STACKED_EXPERTS in tensor.key):
        found.setdefault(alike(tensor.key), []).append(tensor)
    return found


def read_shared(
    checkpoint: Path,
    tensors: Sequence[ShardedTensor],
    alike: Callable[[str], dist.ProcessGroup],
    others: Mapping[str, Any] | None = None,
    is_everywhere: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """Fill `tensors`; every rank calls this.

    Args:
        alike: of a tensor's key, the ranks that hold what this one holds of it (`Parallel.alike`).
        others: entries of a sharded state dict that each rank reads for itself.
        is_everywhere: of a tensor's key, whether every rank holds it, and whole; None: none.

    Returns: `others` as they were read.

    Raises:
        CheckpointError: see `read_sharded`.
    """
    everywhere = [t for t in tensors if is_everywhere is not None and is_everywhere(t.key)]
    of_groups = [t for t in tensors if is_everywhere is None or not is_everywhere(t.key)]
    world = dist.group.WORLD
    assert world is not None
    # In one order on all ranks: those that all of them send each other come first.
    shared = [
        (tensor, holders, reader)
        for held, holders in [
            (everywhere, world),
            *((held, group) for group, held in by_group(of_groups, alike).items()),
        ]
        for tensor, reader in zip(
            held, shares([*map(_num_bytes, held)], holders.size()), strict=True
        )
    ]
    mine = {
        # Megatron-core wants one rank to ask for the first copy of everything.
        str(number): replace(
            tensor, replica_id=(0, 0, 0) if number < len(everywhere) else _replica(tensor, 0)
        )
        for number, (tensor, holders, reader) in enumerate(shared)
        if reader == holders.rank()
    }
    loaded = read_sharded(checkpoint, {"weights": mine, **(others or {})})
    weights = loaded.pop("weights", {})
    with torch.no_grad():
        for number, (tensor, holders, reader) in enumerate(shared):
            assert tensor.data is not None
            target = tensor.data.detach()
            if str(number) in weights and weights[str(number)].data_ptr() != target.data_ptr():
                target.copy_(weights[str(number)])
            if holders.size() > 1:
                # As bytes, which every backend sends.
                sender = dist.get_global_rank(holders, reader)
                dist.broadcast(target.view(-1).view(torch.uint8), src=sender, group=holders)
    return loaded


def shares(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """For each of some things a rank, so that all get about as much; the same list on all ranks."""
    loads = [(0, rank) for rank in range(num_ranks)]
    heapify(loads)
    found = [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        load, rank = loads[0]
        found[number] = rank
        heapreplace(loads, (load + sizes[number], rank))
    return found


def _num_bytes(tensor: ShardedTensor) -> int:
    assert tensor.data is not None
    return tensor.data.numel() * tensor.data.element_size()


def _replica(tensor: ShardedTensor, copy: int) -> tuple[int, int, int]:
    """`replica_id` of the copy of data-parallel rank `copy`; the first one is what counts."""
    assert isinstance(tensor.replica_id, tuple)
    pipeline, tensor_parallel, _ = tensor.replica_id
    return pipeline, tensor_parallel, copy
