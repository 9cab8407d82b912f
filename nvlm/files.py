"""Files that are whole or not there: written beside their name and renamed to it; and their sizes.

A reader, or a run after a kill, finds the file before or the file after, never half of one.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvlm.errors import NvlmError

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def beside(path: Path) -> Path:
    """A name beside `path` that no other process uses, on this host or on another."""
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.tmp")


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield where to write the file; it becomes `path` at the end, or is removed after an error."""
    temporary = beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `path` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write `path`, whole or not at all."""
    with written_beside(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end it replaces `folder`.

    One process at a time: what it left behind, if it was killed, the next one removes.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def free_name(folder: Path, stem: str, suffix: str = "") -> Path:
    """`folder/STEM.SUFFIX`, or with `-2`, `-3`, ... after its stem where that is taken."""
    path, number = folder / f"{stem}{suffix}", 1
    while os.path.lexists(path):
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


def json_line(value: Any) -> str:
    """`value` as a line of a JSON lines file, with its end."""
    return json.dumps(value) + "\n"


def read_json_lines(path: Path) -> Iterator[Any]:
    """The value of each line.

    Raises:
        OSError, ValueError: the file cannot be read, or a line is not JSON.
    """
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def parse_size(text: str, option: str) -> int:
    """Bytes of a size such as `500MB` or `1.5 gb`; units are powers of 1000.

    Args:
        option: what gives the size, such as `--shard-size`.

    Raises:
        NvlmError: it is not such a size, or less than a byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B)\s*", text, flags=re.IGNORECASE)
    size = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    if not 1 <= size < math.inf:
        raise NvlmError(f"{option} {text[:40]}: expected a size such as 500MB or 1.5GB")
    return int(size)
