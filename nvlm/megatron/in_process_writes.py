"""A checkpoint's files written by the process that has the values, a tensor at a time.

What is wrong: Megatron-core 0.16.1 copies all that a rank writes to the host before it writes the
first byte, on a GPU to pinned memory, whose blocks are rounded up to powers of two. It then forks a
process for each file and starts a further one to hand the results over, also where the caller waits
for them. What is left of these when a rank is killed stays forever; a writer that is killed leaves
its rank waiting; and forking a process that has threads is not safe.
What is done: its checkpoints are of torch's format, and torch writes them, in this process. One
tensor after the other goes to the file, and no other is on the host meanwhile (torch's own loop
over a file's tensors keeps them all to its end).
When the pin moves: what is imported here, and whether synchronous saves still copy all first.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint import SavePlan, SavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from nvlm.small_writes import InSmallWrites

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedStateDict
    from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy


def in_process_writer(done: Callable[[], None]) -> SaveShardedStrategy:
    """For `dist_checkpointing.save`; what it writes is what Megatron-core's own would have.

    Args:
        done: called on every rank when it has written or has failed to, before the collective in
            which all ranks say so: those with little to write wait there for the others.
    """
    from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy

    class InProcessWriter(SaveShardedStrategy):
        can_handle_sharded_objects = True  # type: ignore[assignment]

        def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> None:
            write_sharded(sharded_state_dict, checkpoint_dir, done)

    return InProcessWriter("torch_dist", 1)


def written_bytes(sharded_state_dict: ShardedStateDict) -> int:
    """Of tensors that this process writes of a sharded state dict, without the file's headers."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import (
        ShardedTensor,
        ShardedTensorFactory,
        is_main_replica,
    )

    entries = (
        entry
        for entry in nested_values(sharded_state_dict)
        if isinstance(entry, ShardedTensor | ShardedTensorFactory)
    )
    return sum(
        entry.data.nbytes
        for entry in entries
        if entry.data is not None and is_main_replica(entry.replica_id)
    )


def write_sharded(
    sharded_state_dict: ShardedStateDict,
    folder: str | Path,
    done: Callable[[], None],
    group: dist.ProcessGroup | None = None,
) -> None:
    """All but `common.pt` and `metadata.json`; all ranks of `group`, all there are, call this."""
    from megatron.core.dist_checkpointing.strategies.torch import (
        MCoreSavePlanner,
        _replace_state_dict_keys_with_sharded_keys,
        mcore_to_pyt_state_dict,
    )

    entries, _, _ = _replace_state_dict_keys_with_sharded_keys(
        sharded_state_dict, keep_only_main_replica=True
    )
    planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
    checkpoint.save(
        mcore_to_pyt_state_dict(entries),
        storage_writer=_TensorByTensor(folder, done),
        planner=planner,
        process_group=group,
    )


class _TensorByTensor(checkpoint.FileSystemWriter):
    """One file for each rank that has something to write."""

    def __init__(self, folder: str | Path, done: Callable[[], None]):
        super().__init__(folder)
        self.fs = InSmallWrites()
        self._done = done

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            results = self._write_items(plan, planner)
        finally:
            self._done()
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def _write_items(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        results: list[WriteResult] = []
        if plan.items:
            name = f"{plan.storage_data.prefix}0.distcp"
            with self.fs.create_stream(Path(self.path) / name, "wb") as stream:
                for item in plan.items:
                    begin = stream.tell()
                    _write_value(planner.resolve_data(item), stream)
                    size = stream.tell() - begin
                    place = _StorageInfo(name, begin, size)
                    results.append(WriteResult(item.index, size, place))
                stream.flush()
                os.fsync(stream.fileno())
        return results


def _write_value(value: Tensor | io.BytesIO, stream: io.IOBase) -> None:
    if isinstance(value, io.BytesIO):
        stream.write(value.getbuffer())
        return
    # On the host, and with a storage of its own: of a view, all of what it is a view of is written.
    values = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
    torch.save(values, cast("IO[bytes]", stream))
