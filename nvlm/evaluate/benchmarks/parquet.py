"""Rows of parquet files whose images are read when their turn comes.

Hugging Face data sets store an image as `{"bytes": ..., "path": ...}`; a column of several is a
list of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import ImageSource

# Row groups of images that are kept: neighbours are asked for one after another.
_NUM_GROUPS_KEPT = 2


def read_rows(
    paths: Sequence[Path], columns: Sequence[str], image_columns: Sequence[str]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, list[ImageSource]]]]:
    """(values of `columns`, images by column) of each row, in the files' order.

    An empty image column is an empty list.

    Raises:
        DataError: a file is no parquet file, or lacks a column.
    """
    for path in paths:
        try:
            file = pq.ParquetFile(path)
            missing = [c for c in (*columns, *image_columns) if c not in file.schema_arrow.names]
            if missing:
                raise DataError(
                    f"{path}: has no column {missing[0]}; it has "
                    f"{', '.join(file.schema_arrow.names)}"
                )
            for group in range(file.num_row_groups):
                there = _which_images(file, group, image_columns)
                values = file.read_row_group(group, columns=list(columns)).to_pylist()
                for row, value in enumerate(values):
                    images = {
                        column: [
                            _source(path, group, column, row, at) for at in range(there[column][row])
                        ]
                        for column in image_columns
                    }
                    yield value, images
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read as parquet: {error}") from None


def _which_images(
    file: pq.ParquetFile, group: int, columns: Sequence[str]
) -> dict[str, list[int]]:
    """How many images each row of a group has in each column; the images' bytes are not read."""
    counts = {}
    for column in columns:
        leaves = [file.schema.column(at).path for at in range(len(file.schema))]
        paths = [leaf for leaf in leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")]
        values = file.read_row_group(group, columns=paths or [column]).column(column)
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            counts[column] = [len(value) if value.is_valid else 0 for value in values]
        else:
            counts[column] = [int(value.is_valid) for value in values]
    return counts


def _source(path: Path, group: int, column: str, row: int, at: int) -> ImageSource:
    def read() -> bytes:
        value = _column(str(path), group, column)[row].as_py()
        value = value[at] if isinstance(value, list) else value
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(data, bytes):
            raise DataError(f"{path}: column {column} of row {row} of group {group} has no bytes")
        return data

    return read


@lru_cache(_NUM_GROUPS_KEPT)
def _column(path: str, group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(path).read_row_group(group, columns=[column]).column(0)
