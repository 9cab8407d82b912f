"""Rows of tables: which columns are images, and what a row's sample is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError
from nvlm.importers.image_files import FileFolder
from nvlm.importers.records import Keys, Record, Reject, make_record
from nvlm.importers.spellings import ID_FIELDS, MAIN_MEANINGS, MEANINGS, plain

# Rows with their images that are in memory together.
BATCH_ROWS = 32


def check_columns(schema: pa.Schema, where: Path) -> None:
    """Raise `DataError` when a table has no column that a sample can be made of."""
    known = [name for name, meaning in MEANINGS.items() if meaning in MAIN_MEANINGS]
    if not any(plain(name) in known for name in schema.names):
        raise DataError(
            f"{where}: none of its columns ({', '.join(schema.names)}) has text; expected one of "
            f"{', '.join(known)}"
        )


def has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(has_bytes(field.type) for field in kind)
    if isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.DictionaryType)):
        return has_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any] | SampleError]:
    """The rows of a part of a table; of one whose text is not UTF-8, that."""
    try:
        rows: list[dict[str, Any] | SampleError] = [*batch.to_pylist()]
    except UnicodeDecodeError:
        rows = [_read_row(batch.slice(number, 1)) for number in range(batch.num_rows)]
    yield from rows


def _read_row(row: pa.RecordBatch | pa.Table) -> dict[str, Any] | SampleError:
    try:
        (values,) = row.to_pylist()
    except UnicodeDecodeError as error:
        return SampleError("text", f"not UTF-8: {error}")
    return values


def make_row_keys(
    batches: Iterator[pa.RecordBatch | pa.Table], column: str, keys: Keys, first: int
) -> Iterator[str | SampleError]:
    """The keys of rows, or what is wrong with a row.

    Args:
        batches: of columns of plain text and numbers, which tell rows with one id apart.
        first: number of the first row.
    """
    number = first
    for batch in batches:
        for row in _read_rows(batch):
            try:
                if isinstance(row, SampleError):
                    raise row
                yield keys.make(row[column], number, row, f"row {number}")
            except SampleError as error:
                yield error
            number += 1


def id_column(names: list[str]) -> str | None:
    return next((name for name in ID_FIELDS if name in names), None)


def read_records(
    batch: pa.RecordBatch | pa.Table,
    keys: list[str | SampleError],
    first: int,
    folder: FileFolder,
    where: str,
) -> Iterator[Record | Reject]:
    """The records of a part of a table.

    Args:
        keys: of the whole table's rows, or what is wrong with them.
        first: number of the part's first row.
        folder: of the images that rows name.
        where: what to name rejected rows by, before their number.
    """
    for number, row in enumerate(_read_rows(batch), first):
        key = keys[number]
        try:
            if isinstance(row, SampleError):
                raise row
            if isinstance(key, SampleError):
                raise key
            yield make_record(key, row, [], folder=folder)
        except SampleError as error:
            yield Reject.of(f"{where}row {number}", error, row)
