"""Tensors out of a distributed checkpoint one region at a time, without process groups.

Megatron-core's own loader reads whole tensors or one rank's share of a layout. Here some rows of a
single layer are read, so that memory stays small whatever the model's size.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, LoadPlan
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nvlm.convert.blocks import Buffer, all_finite
from nvlm.errors import CheckpointError, ConvertError
from nvlm.rows import Parameter, Place
from nvlm.safe_loading import DAMAGE, describe_damage, read_metadata


class CheckpointReader:
    """The tensors of a checkpoint folder by key, whatever layout wrote it.

    Raises:
        CheckpointError: the folder's table of contents is missing or not readable.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self._storage = FileSystemReader(checkpoint)
        metadata = read_metadata(checkpoint)
        self._storage.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def keys(self) -> set[str]:
        return set(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the whole tensor; for a stack, the numbers of layers and of experts first."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].properties.dtype

    def row_blocks(
        self, row: Parameter, place: Place, start: int, stop: int
    ) -> list[tuple[int, int]]:
        """Ranges that rows `start` to `stop` are stored in: no stored piece is in two of them."""
        axis = len(row.stack_shape)
        pieces = self._pieces(row, place)
        inner = {piece.offsets[axis] for piece in pieces if start < piece.offsets[axis] < stop}
        edges = [start, *sorted(inner), stop]
        return list(pairwise(edges))

    def read(self, row: Parameter, place: Place, start: int, stop: int, buffer: Buffer) -> Tensor:
        """Rows `start` to `stop` of the tensor of `row` at `place`, in `buffer`.

        Raises:
            CheckpointError: a file is missing or damaged.
            ConvertError: a value is NaN or infinite.
        """
        key, stack = row.key, row.offsets(place)
        offsets, sizes = [0] * len(self.shape(key)), list(self.shape(key))
        axis = len(stack)
        offsets[: axis + 1] = [*stack, start]
        sizes[: axis + 1] = [*(1 for _ in stack), stop - start]
        region = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        stored = replace(self._tensors[key], chunks=self._pieces(row, place))
        target = buffer.take(tuple(sizes), self.dtype(key))
        items = create_read_items_for_chunk_list(key, stored, [region])
        try:
            self._storage.read_data(LoadPlan(items), _RegionPlanner(target)).wait()
        except (OSError, *DAMAGE) as error:
            raise CheckpointError(
                f"{self.checkpoint}: {key} cannot be read: {describe_damage(error)}"
            ) from error
        covered = sum(item.lengths.numel() for item in items)
        if covered != target.numel():
            raise CheckpointError(
                f"{self.checkpoint}: {key} has only {covered} of {target.numel()} values"
            )
        if not all_finite(target):
            raise ConvertError(f"{self.checkpoint}: {key}{place} holds NaN or infinite values")
        return target.view(target.shape[axis:])

    def _pieces(self, row: Parameter, place: Place) -> list[ChunkStorageMetadata]:
        """The stored pieces of the tensor of `row` at `place`."""
        stack = row.offsets(place)
        return [
            piece
            for piece in self._tensors[row.key].chunks
            if all(
                first <= offset < first + size
                for offset, first, size in zip(stack, piece.offsets, piece.sizes, strict=False)
            )
        ]


class _RegionPlanner(DefaultLoadPlanner):
    """Tells the storage where each piece of a file belongs: into one region."""

    def __init__(self, target: Tensor):
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._target
