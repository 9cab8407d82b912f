"""Parquet files, such as the Hugging Face hub has: one row per sample.

Images: a column `image` or `images` of bytes, of `{"bytes", "path"}`, or of file names. Text: a
column `conversations`, `messages`, `texts`, `caption`, or `question` and `answer`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError
from nvlm.importers.formats import ImportOptions
from nvlm.importers.records import Keys, Record, Reject
from nvlm.importers.rows import (
    BATCH_ROWS,
    check_columns,
    has_bytes,
    id_column,
    make_row_keys,
    read_records,
)
from nvlm.importers.source_files import find_source_files

_ENDINGS = (".parquet",)


class ParquetReader:
    def __init__(self, options: ImportOptions):
        self.files, self.notes = find_source_files(options, _ENDINGS, "parquet files")
        self._options = options
        self._keys: list[list[str | SampleError]] = []
        # (file, its row groups, row before the first), of about a shard's samples each.
        self._units: list[tuple[int, list[int], int]] = []
        keys = Keys()
        num_rows = 0
        for number, path in enumerate(self.files):
            try:
                file = pq.ParquetFile(path)
                check_columns(file.schema_arrow, path)
                self._keys.append(list(_make_keys(file, keys, num_rows)))
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: not readable as parquet: {error}") from None
            self._plan(number, file.metadata, options.samples_per_shard)
            num_rows += file.metadata.num_rows
        self.num_samples: int | None = num_rows
        self.num_units = len(self._units)

    def _plan(self, file: int, metadata: pq.FileMetaData, samples_per_shard: int) -> None:
        groups: list[int] = []
        first = end = 0
        for group in range(metadata.num_row_groups):
            num_rows = metadata.row_group(group).num_rows
            if groups and end + num_rows - first > samples_per_shard:
                self._units.append((file, groups, first))
                groups, first = [], end
            groups.append(group)
            end += num_rows
        if groups:
            self._units.append((file, groups, first))

    def read(self, unit: int) -> Iterator[Record | Reject]:
        number, groups, row = self._units[unit]
        path = self.files[number]
        folder = self._options.file_folder(path.parent)
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(BATCH_ROWS, row_groups=groups)
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                    lost = f"it and what follows in row groups {groups} cannot be read: {error}"
                    yield Reject.of(f"{path.name} row {row}", SampleError("shard", lost))
                    return
                if batch is None:
                    return
                yield from read_records(batch, self._keys[number], row, folder, f"{path.name} ")
                row += batch.num_rows


def _make_keys(file: pq.ParquetFile, keys: Keys, first: int) -> Iterator[str | SampleError]:
    column = id_column(file.schema_arrow.names)
    if column is None:
        for row in range(file.metadata.num_rows):
            yield keys.make(None, first + row, None)
        return
    simple = [f.name for f in file.schema_arrow if not has_bytes(f.type)]
    batches = file.iter_batches(1024, columns=sorted({column, *simple}))
    yield from make_row_keys(batches, column, keys, first)


def open_source(options: ImportOptions) -> ParquetReader:
    return ParquetReader(options)
