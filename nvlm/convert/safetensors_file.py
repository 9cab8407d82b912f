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
from math import prod
from pathlib import Path

import torch

from nvlm.convert.blocks import WRITE_BYTES
from nvlm.errors import ConvertError

# The types that weights are converted from and to; the format knows more.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# No header of a real model comes near; the official library refuses longer ones too.
_MOST_HEADER_BYTES = 100_000_000
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
        ConvertError: it is no safetensors file, or not all of it is there.
    """

    def __init__(self, path: Path):
        self.path = path
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
        if len(start) < 8 or start[8:9] != b"{" or length > _MOST_HEADER_BYTES:
            raise ConvertError(f"{self.path}: not readable as safetensors: has no header")
        if 8 + length > size:
            raise ConvertError(self._incomplete(size, f"its header alone is {8 + length}"))
        try:
            header = json.loads(os.pread(self._descriptor, length, 8))
            header.pop("__metadata__", None)
            entries = {name: _entry(value, 8 + length) for name, value in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConvertError(f"{self.path}: not readable as safetensors: {error}") from None
        end = max((entry.start + entry.num_bytes for entry in entries.values()), default=0)
        if end > size:
            raise ConvertError(self._incomplete(size, f"its header speaks of {end}"))
        return entries

    def _incomplete(self, size: int, expected: str) -> str:
        return (
            f"{self.path}: has {size} bytes, but {expected}: the download or copy is not complete"
        )


def _entry(value: dict, data_start: int) -> Entry:
    start, end = value["data_offsets"]
    entry = Entry(value["dtype"], tuple(value["shape"]), data_start + start, end - start)
    if entry.dtype in DTYPES:
        expected = prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if entry.num_bytes != expected or start < 0:
            raise ValueError(f"{list(entry.shape)} of {entry.dtype} in {entry.num_bytes} bytes")
    return entry


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
                "dtype": _DTYPE_NAMES[dtype],
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
