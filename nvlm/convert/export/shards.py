"""The safetensors files of an export: planned from names and shapes, then filled row by row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from nvlm.convert.blocks import Buffer, as_dtype, in_blocks, raw_bytes
from nvlm.convert.hf.folder import INDEX_FILE
from nvlm.convert.hf.safetensors_file import SafetensorsOutput
from nvlm.convert.megatron.tensors import CheckpointTensors
from nvlm.convert.session import progress_bar


@dataclass(frozen=True)
class PlannedFile:
    """A safetensors file: its name, and the shapes of its tensors in the order of reading."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values()) * self.dtype.itemsize


def plan_files(
    tensors: CheckpointTensors, dtype: torch.dtype, shard_bytes: int
) -> list[PlannedFile]:
    """Tensors in their order, in files of at most `shard_bytes`, or of one tensor."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    num_bytes = 0
    for name in tensors.names():
        shape = tensors.shape(name)
        size = prod(shape) * dtype.itemsize
        if groups[-1] and num_bytes + size > shard_bytes:
            groups.append({})
            num_bytes = 0
        groups[-1][name] = shape
        num_bytes += size
    return [
        PlannedFile(f"model-{number:05d}-of-{len(groups):05d}.safetensors", shapes, dtype)
        for number, shapes in enumerate(groups, start=1)
    ]


def write_files(folder: Path, files: Sequence[PlannedFile], tensors: CheckpointTensors) -> None:
    """Write `files` into `folder`, a block of rows at a time.

    Raises:
        CheckpointError, ConvertError: see `CheckpointTensors.read_rows`.
        OSError: the disk is full or fails.
    """
    buffer = Buffer()
    with progress_bar("Writing tensors", sum(file.num_bytes for file in files)) as advance:
        for file in files:
            with SafetensorsOutput(folder / file.name, file.shapes, file.dtype) as output:
                for name in file.shapes:
                    position = 0
                    for start, stop in tensors.row_blocks(name):
                        # As many rows as the checkpoint stores together: cast and written by parts.
                        for rows in in_blocks(tensors.read_rows(name, start, stop)):
                            data = raw_bytes(as_dtype(rows, file.dtype, buffer))
                            output.write(name, position, data)
                            position += len(data)
                            advance(len(data))


def write_index(folder: Path, files: Sequence[PlannedFile]) -> None:
    """Which tensor is in which file, as transformers reads it."""
    index = {
        "metadata": {"total_size": sum(file.num_bytes for file in files)},
        "weight_map": {name: file.name for file in files for name in file.shapes},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
