"""Parquet files, such as the Hugging Face hub has: one row per sample.

Images: a column `image` or `images` of bytes, of `{"bytes", "path"}`, or of file names. Text: a
column `conversations`, `messages`, `texts`, `caption`, or `question` and `answer`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from nvlm.data.importers.formats import ImportOptions
from nvlm.data.importers.records import Keys, Record, Reject, source_files
from nvlm.data.importers.rows import check_columns, id_column, row_to_record
from nvlm.data.sample import SampleError
from nvlm.errors import DataError

# Rows with their images that are in memory together.
_BATCH_ROWS = 32


class ParquetReader:
    def __init__(self, options: ImportOptions):
        self.files = source_files(options.source, ("*.parquet",), "parquet files")
        self._folder = options.images
        self._keys: list[list[str | SampleError]] = []
        # (file, its row groups, row before the first), of about a shard's samples each.
        self._units: list[tuple[int, list[int], int]] = []
        keys = Keys()
        num_rows = 0
        for number, path in enumerate(self.files):
            try:
                file = pq.ParquetFile(path)
                check_columns(file.schema_arrow.names, path)
                self._keys.append(list(_make_keys(file, keys, num_rows)))
            except (pa.ArrowException, OSError) as error:
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
        folder = self._folder or path.parent
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups):
                for values in batch.to_pylist():
                    key = self._keys[number][row]
                    try:
                        if isinstance(key, SampleError):
                            raise key
                        yield row_to_record(key, values, folder)
                    except SampleError as error:
                        yield Reject(f"{path.name} row {row}", error.reason, error.detail)
                    row += 1


def _make_keys(file: pq.ParquetFile, keys: Keys, first: int) -> Iterator[str | SampleError]:
    column = id_column(file.schema_arrow.names)
    if column is None:
        for row in range(file.metadata.num_rows):
            yield keys.make(None, first + row, None)
        return
    # What tells rows with one id apart: columns of plain text and numbers.
    simple = [f.name for f in file.schema_arrow if not _has_bytes(f.type)]
    row = first
    for batch in file.iter_batches(1024, columns=sorted({column, *simple})):
        for values in batch.to_pylist():
            try:
                yield keys.make(values[column], row, values)
            except SampleError as error:
                yield error
            row += 1


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def open_source(options: ImportOptions) -> ParquetReader:
    return ParquetReader(options)
