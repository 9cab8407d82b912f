"""Places to write to, looked at before any work is done for them.

A run that cannot write its folder, or an answer file that turns out to be a folder, is refused
before a model is loaded. What is asked is answered by doing it: rights, full disks, read-only disks
and names that are too long are all found, whatever the file system. Nothing is left behind.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from nvlm.errors import DataError, NvlmError
from nvlm.failures import explain
from nvlm.files import beside

# More than a file system keeps in its table of files.
_PROBE_BYTES = 8192


class PlaceError(NvlmError):
    """A file or folder cannot be written."""


def check_folder(folder: Path, option: str) -> None:
    """Raise `PlaceError` unless files can be written in `folder`, which need not exist.

    Args:
        option: what names it, such as `run.dir` or `--root`.
    """
    if folder.exists() and not folder.is_dir():
        raise PlaceError(f"{option} {folder}: is a file; name a folder")
    made: list[Path] = []
    try:
        for missing in _missing(folder):
            try:
                missing.mkdir()
            except FileExistsError:
                continue  # another process was faster
            made.append(missing)
        with tempfile.TemporaryFile(dir=folder, prefix=".nvlm-") as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        if error.errno == errno.ENOENT:  # as in /proc, or behind a link to nowhere
            cause: str | None = "nothing can be made there; choose another place"
        else:
            cause = explain(OSError(error.errno, error.strerror))
        raise PlaceError(f"{option} {folder}: cannot be written: {cause}") from None
    finally:
        for path in reversed(made):
            with suppress(OSError):  # another process writes there already
                path.rmdir()


def check_file(path: Path, option: str) -> None:
    """Raise `PlaceError` unless `path` can be written; an existing file may be replaced."""
    if path.is_dir():
        raise PlaceError(f"{option} {path}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise PlaceError(f"{option} {path}: is a device or a pipe; name a file")
    check_folder(path.parent, option)
    try:
        name_length = os.pathconf(_existing(path.parent), "PC_NAME_MAX")
    except (OSError, ValueError):
        return
    if len(os.fsencode(beside(path).name)) > name_length:
        raise PlaceError(f"{option} {path}: the name is too long")


def _missing(folder: Path) -> list[Path]:
    """The folders that are to be made, the outermost first."""
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = folder.parent
    return missing[::-1]


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def check_name(option: str, name: str) -> None:
    """Raise `DataError` unless `name` can be that of a folder below another one."""
    bad = next((sign for sign in name if sign in "/\\" or not sign.isprintable()), None)
    if bad is not None or not name.strip() or name[0] in ".-" or len(os.fsencode(name)) > 200:
        raise DataError(
            f"{option} {name!r}: expected a name such as train: without slashes and control "
            "characters, not empty, not longer than 200 bytes, and not beginning with . or -"
        )
