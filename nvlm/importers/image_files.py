"""The files that samples name, such as images: found inside one folder, and not outside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown

# A folder with more files is not searched for names like one that is not there.
_MAX_NAMES = 20_000


@dataclass(frozen=True)
class FileFolder:
    """Where the files lie that a source names.

    `allow_outside`: names may lead out of it, by `..`, as absolute paths or through links.
    `inside`: where they may lead to otherwise; None: only into the folder.
    """

    path: Path
    allow_outside: bool = False
    inside: Path | None = None


def find_file(folder: FileFolder, name: Any, what: str) -> Path:
    """The file that a sample names, in `folder`; an absolute name must lie in it.

    Raises:
        SampleError: no name of a file, it leads out of the folder, or nothing has that name.
    """
    reason = f"missing_{what}"
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise SampleError(reason, f"{shown(name)} is not a file name")
    if "://" in name:
        raise SampleError(reason, f"{shown(name)} is an address; download it first")
    path = folder.path / name
    try:
        exists = os.path.lexists(path)
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:  # far too long, or half a surrogate pair
        raise SampleError(reason, f"{shown(name)}: {error}") from None
    inside = folder.inside or folder.path
    if not folder.allow_outside and not _is_in(real, os.path.realpath(inside)):
        is_link = _is_in(os.path.abspath(path), os.path.abspath(inside))
        raise SampleError(
            reason,
            f"{shown(name)} {'is a link out of' if is_link else 'is not in'} {inside}; give "
            "--images with a folder that holds all of them, or --allow-outside to read files from "
            "anywhere",
        )
    if not exists:
        raise SampleError(reason, f"{path}: no such file{_nearest(path, name, folder.path)}")
    return path


def _is_in(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def _nearest(path: Path, name: str, folder: Path) -> str:
    """What may have been meant, for the end of a message."""
    for other in (name.replace("\\", "/"), unquote(name)):
        if other != name and (folder / other).is_file():
            return f"; there is {shown(other)}"
    names = _names_in(path.parent)
    found = names.get(path.name.lower()) or names.get(path.stem.lower())
    return f"; there is {shown(found)}" if found else ""


@lru_cache(maxsize=64)
def _names_in(folder: Path) -> dict[str, str]:
    """A folder's files by their names, and by those without extension, in lower case."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, _MAX_NAMES))
    except OSError:
        return {}
    return {Path(name).stem.lower(): name for name in names} | {n.lower(): n for n in names}
