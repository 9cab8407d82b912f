"""A checkpoint with adapters -> one of the same model without, whose matrices have them in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from nvlm.config.changed import changed
from nvlm.convert.adapters.factors import Factors, adapters_in, read_factors
from nvlm.convert.blocks import Buffer, row_blocks
from nvlm.convert.from_hf import stacked_chunk
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.convert.megatron.writer import Chunk
from nvlm.convert.rewrite import Rewrite
from nvlm.rows import Parameter, Place
from nvlm.sizes.adapters import Adapter
from nvlm.sizes.alignment import stage_rows
from nvlm.sizes.parameters import parameter_table


def merge_adapters(checkpoint: str | Path, out: str | Path) -> Path:
    """Write checkpoint folder `out`, the model with its adapters in; returns `out`.

    Sums are made in fp32 and rounded to the data type of the checkpoint, a few rows at a time. The
    optimizer's state and the position in the data stay behind. Under torchrun every process calls
    this and each writes its share.

    Args:
        checkpoint: a checkpoint that any layout wrote, or a run folder (its latest checkpoint).
        out: a new folder, or a checkpoint to be replaced once the new one is whole.

    Raises:
        CheckpointError: there is no whole checkpoint, or `out` cannot be written.
        ConvertError: it has no adapters, lacks tensors or holds NaN; `out` is something else, or
            its disk has no room. Nothing is written then.
    """
    rewrite = Rewrite(checkpoint, out)
    config, adapters = adapters_in(rewrite.checkpoint, rewrite.reader)
    table = [*parameter_table(config.model), *stage_rows(config)]
    rewrite.check_has([row.key for row in table])
    chunks = list(_chunks(rewrite.reader, table, adapters))
    origins = {"merged": {"folder": str(rewrite.checkpoint)}}
    merged = changed(config, {"stage.adapters": {}})
    return rewrite.write(chunks, table, merged, "Merging adapters", origins)


def _chunks(
    reader: CheckpointReader, table: list[Parameter], adapters: list[Adapter]
) -> Iterator[Chunk]:
    adapter_of = {(a.matrix.key, a.place): a for a in adapters}
    buffer, read = Buffer(), _Last(reader)
    for row in table:
        dtype = reader.dtype(row.key)
        for place in row.places():
            adapter = adapter_of.get((row.key, place))
            for start, stop in row_blocks(row.shape, dtype):
                make = partial(reader.read, row, place, start, stop, buffer)
                if adapter is not None:
                    make = partial(read.merged, adapter, row, place, start, stop, buffer)
                yield stacked_chunk(row, place, start, stop, dtype, make)


class _Last:
    """Merges rows, of which those of one matrix are asked for one after the other."""

    def __init__(self, reader: CheckpointReader):
        self._reader = reader
        self._factors: Factors | None = None

    def merged(
        self, adapter: Adapter, row: Parameter, place: Place, start: int, stop: int, buffer: Buffer
    ) -> Tensor:
        if self._factors is None or self._factors.adapter is not adapter:
            self._factors = read_factors(self._reader, adapter)
        rows = self._reader.read(row, place, start, stop, buffer)
        return self._factors.merged(start, rows).to(rows.dtype)
