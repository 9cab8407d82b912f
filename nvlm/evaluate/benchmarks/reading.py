"""How published files of benchmarks are read: JSON, JSON lines, TSV, parquet, folders of images.

Whatever is wrong with a file is a `DataError` that names the file, the row and the key. An image is
looked for when its row is read, and read when its turn comes: items hold no pixels.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import ImageSource

# Imported by those who read such files: every training knows of the benchmarks.
if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_ROWS = 1000
# As Hugging Face names the files of a split, with a hash in older repositories.
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")
# Longer than this, a cell for an image holds one; as VLMEvalKit tells them apart.
_MAX_INDEX = 64


@dataclass(frozen=True)
class Row:
    """One row of a published file, and where it stands: `FILE row 3`, `FILE questions[3]`."""

    values: Mapping[str, Any]
    where: str
    images: Sequence[ImageSource] = ()  # of parquet and TSV, which hold them
    # Of parquet with several columns of one image each: those that are not empty.
    by_column: Mapping[str, ImageSource] = field(default_factory=dict)

    def wrong(self, problem: str) -> DataError:
        return DataError(f"{self.where}: {problem}")

    def get(self, key: str) -> Any:
        """The value of `key`; raises DataError where there is none."""
        value = self.values.get(key)
        if value is None:
            raise self.wrong(
                f"no `{key}`; there is {', '.join(map(str, self.values)) or 'nothing'}"
            )
        return value

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"`{key}` is {shown(value)}, expected a text")
        return value

    def name(self, key: str) -> str:
        """An id: a text or a whole number, as a text."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise self.wrong(f"`{key}` is {shown(value)}, expected an id")
        return str(value)

    def integer(self, key: str) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(f"`{key}` is {shown(value)}, expected a whole number")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of at least one text; texts may be empty."""
        value = self.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(t, str) for t in value):
            raise self.wrong(f"`{key}` is {shown(value)}, expected a list of texts")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of `count` finite numbers."""
        value = self.get(key)
        is_list = isinstance(value, list) and len(value) == count
        if not is_list or not all(_is_number(part) for part in value):
            raise self.wrong(f"`{key}` is {shown(value)}, expected {count} numbers")
        return [float(number) for number in value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def find_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that any file below `folder` has, in order of their names.

    Raises:
        DataError: nothing has any of them, or of files that are numbered as parts of one split
            (`test-00000-of-00002.parquet`) some are missing or there twice.
    """
    for pattern in patterns:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            _check_numbered(found)
            return found
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; it should hold {' or '.join(patterns)}")
    raise DataError(f"{folder}: neither there nor below is {' or '.join(patterns)}")


def _check_numbered(paths: Iterable[Path]) -> None:
    """Half of a download would be scored as if it were all, and two of them as twice as much."""
    parts: dict[tuple[Path, str], list[tuple[int, int, Path]]] = {}
    for path in paths:
        if match := _NUMBERED.fullmatch(path.name):
            split, number, count = match[1], int(match[2]), int(match[3])
            parts.setdefault((path.parent, split), []).append((count, number, path))
    for (folder, split), found in parts.items():
        count = found[0][0]
        by_number: dict[int, Path] = {}
        for other_count, number, path in found:
            if other_count != count or number in by_number:
                raise DataError(
                    f"{by_number.get(number, found[0][2])} and {path.name} are of two downloads; "
                    "keep one"
                )
            by_number[number] = path
        if missing := [number for number in range(count) if number not in by_number]:
            raise DataError(
                f"{folder}: {len(missing):,} of the {count:,} files {split}-*-of-{count:05d} are "
                f"missing, the first is number {missing[0]:05d}; load them, too"
            )


def has_files(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises DataError."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from None


def json_rows(path: Path, key: str | None = None) -> Iterator[Row]:
    """The objects of a JSON file's list, which stands under `key`; None: the file is the list."""
    value = read_json(path)
    if key is not None:
        if not isinstance(value, dict) or key not in value:
            raise DataError(f"{path}: no list `{key}` in it")
        value = value[key]
    if not isinstance(value, list):
        raise DataError(f"{path}: {f'`{key}`' if key else 'it'} is {shown(value)}, expected a list")
    for number, row in enumerate(value):
        yield _row(row, f"{path} {key or ''}[{number}]")


def json_line_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON lines file; empty lines are passed over."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(_line_value(line, f"{path} line {number}"), f"{path} line {number}")
    except OSError as error:
        raise DataError(f"{path}: not readable: {error}") from None


def _line_value(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {shown(value)}, expected an object")
    return Row(value, where)


@dataclass(frozen=True)
class ImageFolders:
    """Where the images of a benchmark may lie; the first folder that has one counts."""

    folders: Sequence[Path]

    def find(self, name: str, row: Row) -> ImageSource:
        """The image that a row names; raises DataError where no folder has it."""
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise row.wrong(f"{shown(name)} is not the name of a file in a folder")
        # Texts, not Paths: a benchmark may have hundreds of thousands of questions.
        for folder in self.folders:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                return partial(_read_file, path, row.where)
        looked = ", ".join(map(str, self.folders))
        raise row.wrong(f"the image {name} is missing; looked in {looked}")


def _read_file(path: str, where: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}), which {where} needs") from None


def parquet_rows(
    paths: Iterable[Path],
    columns: Sequence[str],
    optional: Sequence[str] = (),
    image: str = "",
    image_columns: Sequence[str] = (),
) -> Iterator[Row]:
    """The rows of parquet files in order, with their images unread.

    Args:
        columns: columns that must be there, without those of images.
        optional: columns that are given where they are there.
        image: a column of bytes, of `{"bytes", "path"}` as Hugging Face has them, or of lists of
            either. Empty: none is read.
        image_columns: columns of one image each, which may be empty, as `Row.by_column` gives them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                yield from _rows_of_parquet(file, path, columns, optional, image, image_columns)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not readable as parquet: {error}") from None


def _rows_of_parquet(
    file: pq.ParquetFile,
    path: Path,
    columns: Sequence[str],
    optional: Sequence[str],
    image: str,
    image_columns: Sequence[str],
) -> Iterator[Row]:
    names = file.schema_arrow.names
    for column in [*columns, *([image] if image else []), *image_columns]:
        if column not in names:
            raise DataError(f"{path}: no column `{column}`; there is {', '.join(names)}")
    wanted = [*columns, *(column for column in optional if column in names)]
    lengths = _list_leaf(file, image) if image else None
    small = [_small_leaf(file, column) for column in image_columns]
    number = 0
    for group in range(file.num_row_groups):
        row_in_group = 0
        chosen = [*wanted, *([lengths] if lengths else []), *small]
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=chosen):
            for values in batch.to_pylist():
                where = f"{path} row {number}"
                count = 1 if image and not lengths else 0
                if lengths:
                    count = len(values.pop(image) or [])
                images = [
                    partial(_parquet_image, path, image, group, row_in_group, position, where)
                    for position in range(count)
                ]
                by_column = {
                    column: partial(_parquet_image, path, column, group, row_in_group, 0, where)
                    for column in image_columns
                    if values.pop(column) is not None
                }
                yield Row(values, where, images, by_column)
                number, row_in_group = number + 1, row_in_group + 1


def _list_leaf(file: pq.ParquetFile, column: str) -> str | None:
    """What to read of a column of lists to learn how long they are; None: it has no lists."""
    import pyarrow as pa

    kind = file.schema_arrow.field(column).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    return _small_leaf(file, column)


def _small_leaf(file: pq.ParquetFile, column: str) -> str:
    """The part of a column of images that holds their names, not their bytes."""
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    leaves = [leaf for leaf in leaves if leaf.split(".")[0] == column]
    return next((leaf for leaf in leaves if leaf.endswith(".path")), column)


def _parquet_image(
    path: Path, column: str, group: int, row: int, position: int, where: str
) -> bytes:
    import pyarrow as pa

    try:
        value = _image_column(path, column, group)[row].as_py()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: the image cannot be read: {error}") from None
    if isinstance(value, list):
        value = value[position]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{where}: `{column}` holds no bytes of an image: {shown(value)}")
    return data


@lru_cache(maxsize=2)  # questions come in the files' order: a row group is read once
def _image_column(path: Path, column: str, group: int) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)


def tsv_rows(path: Path, image: str) -> Iterator[Row]:
    """The rows of a TSV file with a header; the base64 in the column `image` is left in the file.

    Cells are quoted as pandas quotes them. Empty cells are left out of `Row.values`.
    """
    for start, number, cells in _tsv_cells(path):
        where = f"{path} row {number}"
        if start == 0:
            header = [cell.removeprefix("\ufeff") for cell in cells]
            if image not in header:
                raise DataError(f"{path}: no column `{image}`; there is {', '.join(header)}")
            continue
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells under a header of {len(header)}")
        values = dict(zip(header, cells, strict=True))
        encoded = values.pop(image)
        source = partial(_tsv_image, path, start, header.index(image), where)
        kept = {key: value for key, value in values.items() if value.strip()}
        # What is too short for an image is another row's index, as VLMEvalKit's files have it.
        if len(encoded) <= _MAX_INDEX:
            yield Row({**kept, image: encoded}, where)
        else:
            yield Row(kept, where, [source])


def _tsv_cells(path: Path, start: int = 0) -> Iterator[tuple[int, int, list[str]]]:
    """From the byte `start` on: (first byte, number below the header from 1 on, cells) of a row."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open("rb") as file:
            file.seek(start)
            rows = csv.reader((line.decode() for line in file), delimiter="\t")
            number = 0
            while True:
                position = file.tell()
                cells = next(rows, None)
                if cells is None:
                    return
                yield position, number, cells
                number += 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as tab-separated text: {error}") from None


def _tsv_image(path: Path, start: int, column: int, where: str) -> bytes:
    _, _, cells = next(_tsv_cells(path, start))
    try:
        return base64.b64decode(cells[column], validate=True)
    except binascii.Error as error:
        raise DataError(f"{where}: its image is not base64: {error}") from None
