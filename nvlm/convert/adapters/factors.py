"""The adapters of a checkpoint, one at a time, and the rows of a matrix with its adapter in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nvlm.checkpoint_io import read_config
from nvlm.config.schema import RunConfig
from nvlm.convert.blocks import Buffer
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.errors import ConvertError
from nvlm.rows import Place
from nvlm.sizes.adapters import LORA_A, LORA_B, MAGNITUDE, Adapter, adapters_of


@dataclass(frozen=True)
class Factors:
    """An adapter's whole tensors: A [parts x rank, inputs], B [rows, rank], DoRA's lengths."""

    adapter: Adapter
    a: Tensor
    b: Tensor
    magnitude: Tensor | None

    def added(self, start: int, stop: int) -> Tensor:
        """`scale * B @ A` of rows `start` to `stop` of the matrix, fp32: each with its part's A."""
        adapter = self.adapter
        part_of_row = torch.cat(
            [torch.full((rows,), part) for part, rows in enumerate(adapter.part_rows)]
        ).repeat(adapter.num_blocks)[start:stop]
        b, added = self.b[start:stop].float(), torch.empty(stop - start, self.a.shape[1])
        for part, a in enumerate(self.a.float().chunk(adapter.num_parts)):
            of_part = part_of_row == part
            added[of_part] = b[of_part] @ a
        return added * adapter.settings.scale

    def merged(self, start: int, rows: Tensor) -> Tensor:
        """Rows of the matrix, from `start` on, as they are with the adapter; fp32."""
        stop = start + len(rows)
        merged = rows.float() + self.added(start, stop)
        if self.magnitude is not None:
            lengths = torch.linalg.vector_norm(merged, dim=1)
            merged *= (self.magnitude[start:stop].float() / lengths)[:, None]
        return merged


def read_factors(reader: CheckpointReader, adapter: Adapter) -> Factors:
    """
    Raises:
        CheckpointError: a file is missing or damaged.
        ConvertError: a value is NaN or infinite.
    """
    found = {
        row.key.rpartition(".")[2]: reader.read(row, Place(), 0, row.shape[0], Buffer())
        for row in adapter.parameters()
    }
    return Factors(adapter, found[LORA_A], found[LORA_B], found.get(MAGNITUDE))


def adapters_in(checkpoint: Path, reader: CheckpointReader) -> tuple[RunConfig, list[Adapter]]:
    """How a checkpoint was trained, and its adapters.

    Raises:
        ConvertError: it has none, or not all that its configuration says, or in other shapes.
    """
    config = read_config(checkpoint)
    adapters = adapters_of(config)
    if not adapters:
        raise ConvertError(f"{checkpoint}: has no adapters: its stage.adapters is empty")
    if problems := list(_misfits(reader, adapters)):
        raise ConvertError(f"{checkpoint}: tensors do not fit its config: {'; '.join(problems)}")
    return config, adapters


def _misfits(reader: CheckpointReader, adapters: list[Adapter]) -> Iterator[str]:
    for adapter in adapters:
        for row in adapter.parameters():
            if row.key not in reader:
                yield f"{row.key} {list(row.shape)} is missing"
            elif reader.shape(row.key) != row.shape:
                yield f"{row.key} is {list(reader.shape(row.key))}, expected {list(row.shape)}"
