"""safetensors files, read and written a few rows at a time.

The official library maps a whole file, whose pages then count as this process's memory, and its
writer wants all tensors of a file together. The format is small: eight bytes with the length of a
JSON header, the header, the tensors' bytes (huggingface.co/docs/safetensors). What is written here
is byte for byte what the library writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch

from nvlm.dtypes import DTYPES
from nvlm.errors import ConvertError
from nvlm.small_writes import WRITE_BYTES

# The types that weights are converted from and to; the format knows more.
TORCH_DTYPES = {dtype.safetensors_name: dtype.torch for dtype in DTYPES.values()}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

# No header of a real model comes near; the official library refuses longer ones too.
MOST_JSON_BYTES = 100_000_000
_GIT_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: `dtype` as the header spells it, `start` in bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class SafetensorsFile:
    """A file to read from; `entries` are its tensors by name.

    Raises:
        ConvertError: it is not a safetensors file, or not all of it is there.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.exists() and not path.is_file():
            # To open a pipe would wait forever.
            raise ConvertError(f"{path}: is not a regular file")
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise ConvertError(f"{path}: cannot be read: {error.strerror}") from None
        # Tensors are read in order, mostly: the system may read ahead.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self.entries = self._read_header(size)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read_into(self, memory: memoryview, entry: Entry, first_byte: int) -> None:
        """Fill `memory` with the bytes of a tensor from `first_byte` of it on.

        Raises:
            ConvertError: the file became shorter meanwhile, or the disk fails.
        """
        position = entry.start + first_byte
        while len(memory):
            try:
                count = os.preadv(self._descriptor, [memory], position)
            except OSError as error:
                raise ConvertError(f"{self.path}: cannot be read: {error.strerror}") from None
            if not count:
                raise ConvertError(f"{self.path}: ends early: it changed while it was read")
            memory, position = memory[count:], position + count

    def _read_header(self, size: int) -> dict[str, Entry]:
        start = os.pread(self._descriptor, 64, 0)
        if start.startswith(_GIT_LFS_POINTER):
            raise ConvertError(
                f"{self.path}: is a pointer of git-lfs, not the weights: run `git lfs pull` there"
            )
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or start[8:9] != b"{" or length > MOST_JSON_BYTES:
            raise ConvertError(f"{self.path}: not readable as safetensors: has no header")
        if 8 + length > size:
            raise ConvertError(self._incomplete(size, f"its header alone is {8 + length}"))
        try:
            header = parse_json(os.pread(self._descriptor, length, 8))
            if not isinstance(header, dict):
                raise ValueError("its header is not a JSON object")
            header.pop("__metadata__", None)
            entries = {name: _entry(name, value, 8 + length) for name, value in header.items()}
            end = max((entry.start + entry.num_bytes for entry in entries.values()), default=0)
            if end > size:
                raise ConvertError(self._incomplete(size, f"its header mentions {end}"))
            _check_places(entries, 8 + length, size)
        except ConvertError:
            raise
        except ValueError as error:
            raise ConvertError(f"{self.path}: not readable as safetensors: {error}") from None
        return entries

    def _incomplete(self, size: int, expected: str) -> str:
        return (
            f"{self.path}: has {size} bytes, but {expected}: the download or copy is not complete"
        )


def _entry(name: str, value: Any, data_start: int) -> Entry:
    """Raises `ValueError` for what a header may not say of a tensor."""
    where = f"tensor {name!a}"
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise ValueError(f"{where} has no dtype, shape or data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        raise ValueError(f"{where} has a dtype, shape or data_offsets that is none")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{where} has data_offsets {offsets}")
    entry = Entry(dtype, tuple(shape), data_start + offsets[0], offsets[1] - offsets[0])
    if dtype in TORCH_DTYPES and entry.num_bytes != prod(shape) * TORCH_DTYPES[dtype].itemsize:
        raise ValueError(f"{where}: {shape} of {dtype} in {entry.num_bytes} bytes")
    return entry


def _are_sizes(value: Any) -> bool:
    """A list of numbers as a header may hold them: 0 or more, of 64 bits."""
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


def _check_places(entries: Mapping[str, Entry], data_start: int, size: int) -> None:
    """Raise `ValueError` unless the tensors follow each other, and the file ends with the last.

    The format wants that; tensors that overlap, or bytes of no tensor, are a header that lies.
    """
    order = sorted(entries, key=lambda name: (entries[name].start, entries[name].num_bytes))
    end = data_start
    for name in order:
        if entries[name].start != end:
            raise ValueError(
                f"tensor {name!a} begins at byte {entries[name].start}, where {end} was "
                "expected: tensors overlap, or there is a gap between them"
            )
        end += entries[name].num_bytes
    if end != size:
        raise ValueError(f"{size - end} bytes follow the last tensor")


def parse_json(data: bytes) -> Any:
    """The value in `data`, as the standard has it.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deep, a key appears twice in an object, or a
            number is not finite or too long.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                raise ValueError(f"{name!a} appears twice")
            values[name] = value
        return values

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not a number of JSON")

    def number(text: str) -> float:
        value = float(text)
        if not isfinite(value):
            raise ValueError(f"{text[:40]} is too large for a number")
        return value

    try:
        return json.loads(
            data.decode(), object_pairs_hook=once, parse_constant=constant, parse_float=number
        )
    except RecursionError:
        raise ValueError("nested too deep") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None


class SafetensorsOutput:
    """A new file of known tensors, whose bytes are then written in any order; use it in `with`.

    Raises:
        OSError: the file cannot be made, or at the end: the disk is full or fails.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype):
        """shapes: name -> shape of the file's tensors, all of `dtype`."""
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        self._starts: dict[str, int] = {}
        position = 0
        for name in sorted(shapes):
            num_bytes = prod(shapes[name]) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shapes[name]),
                "data_offsets": [position, position + num_bytes],
            }
            self._starts[name] = position
            position += num_bytes
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % 8)  # so that the tensors' bytes are aligned
        self._data_start = 8 + len(encoded)
        self._missing = position
        self._file = path.open("wb", buffering=0)
        self._write(memoryview(len(encoded).to_bytes(8, "little") + encoded), 0)

    def write(self, name: str, first_byte: int, data: memoryview) -> None:
        """Write bytes of a tensor, from `first_byte` of it on; each byte once.

        Raises:
            OSError: the disk is full or fails.
        """
        self._missing -= len(data)
        self._write(data, self._data_start + self._starts[name] + first_byte)

    def __enter__(self) -> SafetensorsOutput:
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        """Have all of it on disk, not only in the system's memory, before the file is closed."""
        with self._file:
            if error_type is None:
                assert self._missing == 0, f"{self._missing} bytes were not written"
                os.fsync(self._file.fileno())

    def _write(self, data: memoryview, position: int) -> None:
        while len(data):
            count = os.pwrite(self._file.fileno(), data[:WRITE_BYTES], position)
            data, position = data[count:], position + count
