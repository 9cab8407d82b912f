"""Tensors out of a distributed checkpoint one region at a time, without process groups.

Megatron-core's own loader reads whole tensors or one rank's share of a layout. Here a single layer
is read out of a stack, so that memory stays small whatever the model's size.
"""

from __future__ import annotations

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
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from nvlm.errors import CheckpointError


class CheckpointReader:
    """The tensors of a checkpoint folder by key, whatever layout wrote it.

    Raises:
        CheckpointError: the folder's table of contents is missing or not readable.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self._storage = FileSystemReader(checkpoint)
        try:
            metadata = self._storage.read_metadata()
        except Exception as error:  # unpickling a damaged file can raise anything
            raise CheckpointError(f"{checkpoint}/.metadata: not readable: {error}") from error
        self._storage.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the whole tensor; for a stack of layers, their number first."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].properties.dtype

    def read(self, keys: list[str], layer: int | None = None) -> dict[str, Tensor]:
        """Whole tensors, or one layer of stacks, in one pass over the files.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        regions = {}
        for key in keys:
            sizes = list(self.shape(key))
            offsets = [0] * len(sizes)
            if layer is not None:
                sizes[0], offsets[0] = 1, layer
            regions[key] = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        planner = _RegionPlanner(
            {key: torch.empty(r.sizes, dtype=self.dtype(key)) for key, r in regions.items()}
        )
        items: list[ReadItem] = []
        for key, region in regions.items():
            items += create_read_items_for_chunk_list(key, self._tensors[key], [region])
        try:
            self._storage.read_data(LoadPlan(items), planner).wait()
        except (OSError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{self.checkpoint}: cannot be read: {error}") from error
        if layer is None:
            return planner.targets
        return {key: target.squeeze(0) for key, target in planner.targets.items()}


class _RegionPlanner(DefaultLoadPlanner):
    """Tells the storage where each piece of a file belongs."""

    def __init__(self, targets: dict[str, Tensor]):
        super().__init__()
        self.targets = targets

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.targets[index.fqn]
