"""The columns of an index in one file, which is mapped into memory: one descriptor per source.

`columns.bin` has one column after another, each at a multiple of 64 bytes; a table in `index.json`
says where each is, its type, its length and its checksum. A file that is short, or whose bytes are
not those that were written, is noticed when it is opened.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

COLUMNS_FILE = "columns.bin"
_ALIGNMENT = 64
# Of all columns of a source; of longer ones only the length is compared, to start in seconds.
_MAX_CHECKED_BYTES = 1 << 30
_BYTES_PER_CHECK = 1 << 24

# Column -> {"dtype", "offset" in bytes, "length" in values, "checksum"}
Table = dict[str, dict[str, Any]]


class DamagedIndexError(Exception):
    """An index is not what was written."""


class Column:
    """A file that grows, until `join_columns` appends it to the others."""

    def __init__(self, folder: Path, name: str, dtype: DTypeLike):
        self.path = folder / f"{name}.part"
        self.dtype = np.dtype(dtype)
        self.length = 0
        self.checksum = 0
        self._file: BinaryIO = self.path.open("wb")

    def append(self, values: NDArray) -> None:
        data = np.ascontiguousarray(values, self.dtype).tobytes()
        self._file.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self.length += len(values)

    def close(self) -> None:
        self._file.close()


def join_columns(columns: Mapping[str, Column], folder: Path) -> Table:
    """Put the columns' files into one."""
    table: Table = {}
    with (folder / COLUMNS_FILE).open("wb") as joined:
        for name, column in columns.items():
            column.close()
            joined.write(bytes(-joined.tell() % _ALIGNMENT))
            table[name] = {
                "dtype": column.dtype.str,
                "offset": joined.tell(),
                "length": column.length,
                "checksum": column.checksum,
            }
            with column.path.open("rb") as own:
                shutil.copyfileobj(own, joined)
            column.path.unlink()
        joined.write(bytes(_ALIGNMENT))  # an empty file cannot be mapped
    return table


def map_columns(
    folder: Path, table: Table, expected: Mapping[str, DTypeLike]
) -> dict[str, NDArray]:
    """The columns by name, as arrays over the mapped file.

    Raises:
        DamagedIndexError: a column is missing, short, of another type, or was changed.
        OSError: the file is missing.
    """
    mapped = np.memmap(folder / COLUMNS_FILE, np.uint8, mode="r")
    is_checked = len(mapped) <= _MAX_CHECKED_BYTES
    columns = {}
    for name, dtype in expected.items():
        entry = table[name]
        if np.dtype(entry["dtype"]) != np.dtype(dtype):
            raise DamagedIndexError(f"column {name} is of type {entry['dtype']}")
        start = entry["offset"]
        stop = start + entry["length"] * np.dtype(dtype).itemsize
        if not 0 <= start <= stop <= len(mapped):
            raise DamagedIndexError(f"column {name} is cut off")
        data = mapped[start:stop]
        if is_checked and _checksum(data) != entry["checksum"]:
            raise DamagedIndexError(f"column {name} was changed")
        # A plain view of the mapped file: single values are read faster.
        columns[name] = np.asarray(data.view(dtype))
    return columns


def check_starts(
    columns: Mapping[str, NDArray], groups: Mapping[str, Iterable[str]], num_samples: int
) -> None:
    """Raise `DamagedIndexError` where lists do not begin and end inside their columns."""
    for group, members in groups.items():
        starts = columns[f"{group}_starts"]
        ends = {len(columns[name]) for name in members}
        if len(starts) != num_samples + 1 or starts[0] != 0 or {int(starts[-1])} != ends:
            raise DamagedIndexError(f"lists of column {group}_starts do not fit")


def _checksum(data: Any) -> int:
    checksum = 0
    for start in range(0, len(data), _BYTES_PER_CHECK):
        checksum = zlib.crc32(data[start : start + _BYTES_PER_CHECK], checksum)
    return checksum
