"""Lists of pictures with captions: JSON lines, CSV and parquet, as rows of named fields."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.regular_files import read_regular_file
from nvlm.data.shards.shard import MAX_TEXT_BYTES
from nvlm.errors import DataError

# `metadata.csv`, `captions.jsonl`, and with a split's name `captions_val.jsonl`.
_LIST_NAME = re.compile(r"(captions|metadata)([._-]\w+)?\.(jsonl|csv|tsv|parquet)")
FILE_NAMES = (
    "file_name", "file_names", "filename", "file", "filepath", "file_path", "image", "images",
    "image_name", "image_path", "image_file", "img", "path",
)  # fmt: skip
_SEPARATORS = ",;\t|"
_MAX_LIST_BYTES = 8 << 30

# (where it stands, its fields or what is wrong with it)
Row = tuple[str, dict[str, Any] | SampleError]


def is_list(name: str) -> bool:
    return _LIST_NAME.fullmatch(name.lower()) is not None


def read_list(path: Path) -> Iterator[Row]:
    """The rows of a list.

    Raises:
        DataError: it cannot be read, or no column has file names.
    """
    try:
        if path.suffix.lower() == ".parquet":
            yield from _read_parquet(path)
            return
        raw = read_regular_file(path, _MAX_LIST_BYTES)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    yield from _read_lines(raw) if path.suffix.lower() == ".jsonl" else _read_csv(path, raw)


def picture_names(fields: dict[str, Any]) -> tuple[list[Any], str | None]:
    """The names of a row's pictures, and the field that has them."""
    for field in FILE_NAMES:
        if fields.get(field) not in (None, "", []):
            value = fields[field]
            return value if isinstance(value, list) else [value], field
    return [""], None


def _read_lines(raw: bytes) -> Iterator[Row]:
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            yield f"line {number}", _parse(line)


def _parse(line: bytes) -> dict[str, Any] | SampleError:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return SampleError(
            "json", f"not readable as JSON, of which each line has one object: {error}"
        )
    if not isinstance(value, dict):
        return SampleError("fields", f"expected an object, found {type(value).__name__}")
    return value


def _read_csv(path: Path, raw: bytes) -> Iterator[Row]:
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = raw.decode(
        "utf-16" if utf16 else "utf-8-sig", "surrogateescape" if not utf16 else "replace"
    )
    del raw
    header = text.partition("\n")[0]
    columns, separator = _columns(header)
    if not set(FILE_NAMES) & set(columns):
        raise DataError(
            f"{path}: none of its columns ({', '.join(columns)[:200]}) has the pictures' names; "
            f"expected one of {', '.join(FILE_NAMES)}"
        )
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise DataError(f"{path}: two of its columns are called {twice}; rename one")
    csv.field_size_limit(MAX_TEXT_BYTES)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    next(rows)
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {rows.line_num}", SampleError("fields", f"not readable as CSV: {error}")
            continue
        if any(values):
            yield f"line {rows.line_num}", _named(columns, values)


def _columns(header: str) -> tuple[list[str], str]:
    """The columns that a header names, and what separates them."""
    best: tuple[int, list[str], str] = (-1, [], ",")
    for separator in _SEPARATORS:
        try:
            names = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:
            continue
        names = [name.strip().lower() for name in names]
        known = sum(name in FILE_NAMES for name in names)
        best = max(best, (known * 1000 + len(names), names, separator), key=lambda x: x[0])
    return best[1], best[2]


def _named(columns: list[str], values: list[str]) -> dict[str, Any] | SampleError:
    if len(values) > len(columns):
        return SampleError(
            "fields",
            f"{len(values)} values for {len(columns)} columns: put quotes around values that have "
            "the separator in them",
        )
    fields = {name: value.strip() for name, value in zip(columns, values, strict=False) if value}
    if any("\udc80" <= sign <= "\udcff" for value in fields.values() for sign in value):
        return SampleError("text", "not UTF-8")
    return fields


def _read_parquet(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        if not set(FILE_NAMES) & set(file.schema_arrow.names):
            raise DataError(
                f"{path}: none of its columns ({', '.join(file.schema_arrow.names)[:200]}) has the "
                f"pictures' names; expected one of {', '.join(FILE_NAMES)}"
            )
        number = 0
        for batch in file.iter_batches(1024):
            for fields in batch.to_pylist():
                yield f"row {number}", {k: v for k, v in fields.items() if v is not None}
                number += 1
