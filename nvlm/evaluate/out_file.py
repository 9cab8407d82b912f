"""The file of answers: checked before anything is loaded, replaced only by a whole one."""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvlm.errors import DataError
from nvlm.files import json_line

# Each of a row's fields that tells an evaluation's file from another.
_FIELDS = {"answer", "answer_token_ids", "truth"}


class OutFile:
    """Context: writes rows beside `path`, and puts them in its place by `finish`.

    Until then a file of answers that is there stays as it is; what was written is removed when the
    context ends early, or by the next evaluation after a kill.
    """

    def __init__(self, path: Path):
        """
        Raises:
            DataError: no file of answers can be written there.
        """
        self.replaces = check_out(path)
        # Where `path` is a link, what it points to is replaced.
        self._target = Path(os.path.realpath(path))
        self._path = path
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self._target)
            # A name of its own, also where two evaluations write to one place.
            self._beside = self._target.with_name(f"{_prefix(self._target)}{os.getpid()}.part")
            self._file = self._beside.open("w", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(path, error) from None

    def note(self, row: Mapping[str, Any]) -> None:
        """Write a row as soon as it is known: for those who watch, and as a test of the disk."""
        self._write([row])

    def finish(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write all rows, in their final order, and put them at `path`."""
        try:
            self._file.seek(0)
            self._file.truncate()
            self._write(rows)
            os.fsync(self._file.fileno())
            self._beside.replace(self._target)
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        try:
            for row in rows:
                self._file.write(json_line(row))
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def __enter__(self) -> OutFile:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk, which was reported
            self._file.close()
        self._beside.unlink(missing_ok=True)


def check_out(path: Path) -> bool:
    """Whether answers are there already, which may be replaced.

    Raises:
        DataError: `path` is a folder, a device, or a file of something else.
    """
    try:
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise DataError(f"--out {path}: {above} is a file, not a folder")
        if not path.exists():
            return False
        if path.is_dir():
            raise DataError(
                f"--out {path}: is a folder; give the name of a file in it, such as "
                f"{path / 'answers.jsonl'}"
            )
        if not path.is_file():
            raise DataError(f"--out {path}: exists and is not a regular file; give another name")
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(1 << 24)
    except OSError as error:
        raise _cannot_write(path, error) from None
    if first and not _is_row(first):
        raise DataError(
            f"--out {path}: exists and does not hold an evaluation's answers; remove it, or give "
            "another name"
        )
    return bool(first)


def _prefix(target: Path) -> str:
    return f".{target.name}.{os.uname().nodename}-"


def _remove_stale(target: Path) -> None:
    """What evaluations to the same place left behind that were killed on this machine."""
    for old in target.parent.glob(f"{glob.escape(_prefix(target))}*.part"):
        number = old.name.removeprefix(_prefix(target)).removesuffix(".part")
        if number.isdecimal() and not Path("/proc", number).exists():
            old.unlink(missing_ok=True)


def _is_row(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and row.keys() >= _FIELDS


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"--out {path}: cannot be written: {error.strerror or error}")
