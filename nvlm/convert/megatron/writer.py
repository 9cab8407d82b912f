"""A distributed checkpoint written a chunk at a time, without a model.

`torch.distributed.checkpoint`, the format below Megatron-core's, plans a checkpoint from the shapes
of its chunks and asks for their values one by one when it writes them. A planner that makes a
chunk's values at that moment holds no more than one, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from nvlm.small_writes import InSmallWrites


@dataclass(frozen=True)
class Chunk:
    """A region of a checkpoint's tensor, and how its values are made.

    key: name of the tensor in the checkpoint.
    shape: of the whole tensor; of a stack of layers, their number first.
    offsets, sizes: the region.
    make: returns a tensor of `sizes` and `dtype`, valid until another chunk is made.
    """

    key: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor] = field(compare=False)

    @property
    def num_bytes(self) -> int:
        return prod(self.sizes) * self.dtype.itemsize


def write_chunks(folder: Path, chunks: Sequence[Chunk], advance: Callable[[int], None]) -> None:
    """Write a checkpoint that Megatron-core opens; every rank calls this with its own chunks.

    The chunks of all ranks together cover each tensor once. `advance` gets the bytes of each chunk
    when its values were made.

    Raises:
        NvlmError: whatever making a chunk's values raised, on any rank.
        OSError: the disk is full or fails.
    """
    # No copies ahead: they would hold a second chunk.
    writer = checkpoint.FileSystemWriter(folder, per_thread_copy_ahead=0)
    writer.fs = InSmallWrites()
    try:
        checkpoint.save({}, storage_writer=writer, planner=_ChunkPlanner(chunks, advance))
    except CheckpointException as failed:
        rank = min(failed.failures)
        raise failed.failures[rank][0] from failed
    if dist.get_rank() == 0:
        _write_megatron_files(folder)


def _write_megatron_files(folder: Path) -> None:
    """What Megatron-core keeps beside the tensors: that there is nothing else, and the format."""
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.dist_checkpointing.strategies.common import TorchCommonSaveStrategy

    TorchCommonSaveStrategy("torch", 1).save_common({}, folder)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _ChunkPlanner(DefaultSavePlanner):
    """Plans chunks whose values do not exist yet."""

    def __init__(self, chunks: Sequence[Chunk], advance: Callable[[int], None]):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._chunks = {
            MetadataIndex(chunk.key, torch.Size(chunk.offsets)): chunk for chunk in chunks
        }
        assert len(self._chunks) == len(chunks), "two chunks begin at the same place"
        self._advance = advance

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(index, chunk) for index, chunk in self._chunks.items()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        chunk = self._chunks[write_item.index]
        values = chunk.make()
        assert values.shape == chunk.sizes and values.dtype == chunk.dtype, chunk
        self._advance(chunk.num_bytes)
        return values.contiguous()


def _write_item(index: MetadataIndex, chunk: Chunk) -> WriteItem:
    region = ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
    return WriteItem(
        index=index,
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=region,
            properties=TensorProperties(dtype=chunk.dtype),
            size=torch.Size(chunk.shape),
        ),
    )
