"""Reading files that others name: regular files only, and of bounded size.

A pipe would wait forever, a device such as /dev/zero never ends. This file imports no torch.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

# Pixels of the largest images that are trained on take less than this uncompressed.
MAX_IMAGE_BYTES = 512 << 20
MAX_VIDEO_BYTES = 4 << 30

_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
}  # fmt: skip


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger than `max_bytes`. The
            message does not repeat the path.
    """
    try:
        with os.fdopen(open_regular_file(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise OSError(f"{size:,} bytes, at most {max_bytes:,} are read")
            return file.read(size)
    except OSError as error:
        raise OSError(error.strerror or str(error)) from None


def open_regular_file(path: Path | str) -> int:
    """A descriptor of a regular file, for reading; opening never waits.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    check_regular_file(os.stat(path))  # a device may do something when it is opened
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_regular_file(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_regular_file(status: os.stat_result) -> None:
    """Raise `OSError` unless `status` is a regular file's."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown kind")
        raise OSError(f"it is {kind}, expected a file")
