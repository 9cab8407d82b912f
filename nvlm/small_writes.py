"""Checkpoint files written a little at a time.

Linux takes a much larger write up several times slower (docs/experiments.md).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem

# Bytes given to the system at a time.
WRITE_BYTES = 2**20


class InSmallWrites(FileSystem):
    """For the `fs` of torch's checkpoint writer."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        """A file to write.

        Raises:
            OSError: the disk is full or fails.
        """
        assert mode == "wb", "a checkpoint is only written here"
        raw = _SmallWrites(path, mode)
        try:
            with io.BufferedWriter(raw) as file:
                yield file
        except RuntimeError as error:
            # torch's own complaint about a file that could not be written.
            raise raw.failure or error from error


class _SmallWrites(io.FileIO):
    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), WRITE_BYTES):
            rest = view[start : start + WRITE_BYTES]
            try:
                while rest:
                    rest = rest[super().write(rest) :]
            except OSError as error:
                self.failure = error
                raise
        return len(view)
