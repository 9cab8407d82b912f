"""Rows of tables: which columns are images, and what a row's sample is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from nvlm.data.importers.fields import TEXT_FIELDS
from nvlm.data.importers.image_files import FileFolder, find_file
from nvlm.data.importers.records import (
    ID_FIELDS,
    Keys,
    Picture,
    Record,
    Reject,
    make_record,
)
from nvlm.data.sample import SampleError
from nvlm.data.text_members import shown
from nvlm.errors import DataError

IMAGE_COLUMNS = ("images", "image", "jpg", "png", "picture")
# Rows with their images that are in memory together.
BATCH_ROWS = 32


def check_columns(schema: pa.Schema, where: Path) -> None:
    """Raise `DataError` when a table has no column that text can come from, or images in a column
    of another name than those read."""
    names = schema.names
    # The others need a question.
    known = set(TEXT_FIELDS) - {"answers", "answer", "label", "choices"}
    if not known & set(names):
        raise DataError(
            f"{where}: none of its columns ({', '.join(names)}) has text; expected one of "
            f"{', '.join(sorted(known))}"
        )
    unread = [field.name for field in schema if has_bytes(field.type)]
    if unread and not set(IMAGE_COLUMNS) & set(names):
        raise DataError(
            f"{where}: its column {unread[0]} holds bytes, and no column has a name of those with "
            f"images ({', '.join(IMAGE_COLUMNS)}); rename it, or leave it out"
        )


def has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(has_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
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
                yield keys.make(row[column], number, row)
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
            yield _make_record(key, row, folder)
        except SampleError as error:
            yield Reject.of(f"{where}row {number}", error)


def _make_record(key: str, row: dict[str, Any], folder: FileFolder) -> Record:
    """A row as a record; images are bytes, `{"bytes", "path"}`, or names of files in `folder`."""
    pictures: list[Picture] = []
    for name in IMAGE_COLUMNS:
        if row.get(name) is not None:
            values = row[name] if isinstance(row[name], list) else [row[name]]
            pictures = [_picture(value, folder) for value in values if value is not None]
            break
    fields = {name: value for name, value in row.items() if name not in IMAGE_COLUMNS}
    video = row.get("video")
    video = None if video is None else Picture(None, find_file(folder, video, "video"))
    return make_record(key, fields, pictures, video)


def _picture(value: Any, folder: FileFolder) -> Picture:
    if isinstance(value, bytes):
        return Picture(value)
    if isinstance(value, str):
        return Picture(None, find_file(folder, value, "image"))
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return Picture(value["bytes"])
        return Picture(None, find_file(folder, value.get("path"), "image"))
    raise SampleError("missing_image", f"an image is {shown(value)}, expected bytes")
