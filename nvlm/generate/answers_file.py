"""The file of answers of `nvlm generate`: rows as they come, kept over kills, in order at the end.

Beside `OUT` lies `OUT.settings.json` with what its answers depend on, and while several model
replicas answer, a file `OUT.part-N` of each but the first. Rows are appended and flushed. The next
start takes over what an earlier one left, parts too; `finish` puts all rows in the questions' order
and removes the parts. This file imports no torch.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from nvlm.data.samples.text_members import shown
from nvlm.errors import DataError
from nvlm.files import json_line, write_text, written_beside
from nvlm.generate.asked import Asked
from nvlm.places import check_file

_END_BYTES = 1 << 16
SECONDS_TO_END = 20.0
_SECONDS_BETWEEN_TRIES = 0.2
# What a row says of its question; see `Asked.as_fields`.
_OF_QUESTION = ("id", "images", "prompt", "messages", "sampling")


def settings_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.settings.json")


def part_file(out: Path, number: int) -> Path:
    """Of the model replica `number`, from 1; the first one writes `out`."""
    return out.with_name(f"{out.name}.part-{number}")


class PartFile:
    """Context: appends rows to a file; each is on its way to the disk when `add` returns."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise _cannot_write(path, error) from None

    def add(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(json_line(row).encode())
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from None

    def lock(self) -> None:
        """Wait until no process writes the file that was killed, and may take seconds to end.

        Raises:
            DataError: another process goes on writing it.
        """
        deadline = time.monotonic() + SECONDS_TO_END
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DataError(
                        f"--out {self._path}: another `nvlm generate` is writing it; wait for it, "
                        "or end it"
                    ) from None
            except OSError:
                return  # a disk without locks
            time.sleep(_SECONDS_BETWEEN_TRIES)

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _cannot_write(self._path, error) from None


class AnswersFile(PartFile):
    """`OUT` and what lies beside it, opened by one process for all.

    Attributes:
        done: positions of the questions whose rows are there.
        is_in_order: whether the rows that were there are in the questions' order, and no others.
        notes: what was found, for the user.
    """

    def __init__(self, out: Path, asked: Sequence[Asked], settings: Mapping[str, Any]):
        """
        Args:
            settings: what answers depend on, beside the questions; flat, of JSON values.

        Raises:
            DataError: the file holds something else, rows of other settings or of other questions,
                or cannot be written.
        """
        self.notes: list[str] = []
        self.done: set[int] = set()
        self._out = out
        self._asked = asked
        self._position = {str(question.id): place for place, question in enumerate(asked)}
        # Position -> where its row lies.
        self._rows: dict[int, tuple[Path, int, int]] = {}
        check_file(out, "--out")
        parts = [Path(name) for name in sorted(glob.glob(f"{glob.escape(str(out))}.part-*"))]
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(out, error) from None
        super().__init__(out)
        try:
            self.lock()
            _check_settings(out, parts, settings)
            write_text(settings_file(out), json.dumps(settings, indent=2) + "\n")
            num_lines = 0
            for path in (out, *parts):
                self._cut_torn_line(path)
                num_lines += self._read(path)
            is_sorted = [*self._rows] == sorted(self._rows)
            self.is_in_order = not parts and is_sorted and num_lines == len(self._rows)
            self._take_over(parts)
        except OSError as error:
            self._file.close()
            raise _cannot_write(out, error) from None
        except BaseException:
            self._file.close()
            raise

    def finish(self, num_replicas: int) -> None:
        """Put all rows, those of other replicas too, in the questions' order, at once.

        Raises:
            DataError: it cannot be written.
        """
        parts = [part_file(self._out, number) for number in range(1, num_replicas)]
        self._rows.clear()
        for path in (self._out, *parts):
            self._read(path)
        if missing := len(self._asked) - len(self._rows):
            raise DataError(
                f"--out {self._out}: {missing:,} rows are missing that other processes wrote: put "
                "it on a disk that all machines share"
            )
        try:
            with written_beside(self._out) as beside, beside.open("wb") as file:
                self._copy(range(len(self._asked)), file)
                file.flush()
                os.fsync(file.fileno())
            for path in parts:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self._out, error) from None

    def _cut_torn_line(self, path: Path) -> None:
        """Drop what a kill left of a row in the middle of being written."""
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            whole = size
            while whole:
                start = max(0, whole - _END_BYTES)
                file.seek(start)
                newline = file.read(whole - start).rfind(b"\n")
                whole = start + newline + 1 if newline >= 0 else start
                if newline >= 0:
                    break
            if whole < size:
                file.truncate(whole)
                self.notes.append(f"{path}: its last row was cut short, and is dropped")

    def _read(self, path: Path) -> int:
        """Note where rows are; returns how many lines there are."""
        if not path.exists():
            return 0
        number = 0
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, 1):
                position = self._position_of(path, number, line)
                if position is not None:
                    self._rows.setdefault(position, (path, start, len(line)))
                start += len(line)
        self.done = set(self._rows)
        return number

    def _position_of(self, path: Path, number: int, line: bytes) -> int | None:
        """Of the row's question; None: an error's row whose question was repaired since."""
        where = f"--out {path} line {number}"
        try:
            row = json.loads(line)
            key = str(row["id"])
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{where}: is no row of an answer: {shown(line[:40])}; remove the line, or give "
                "another --out"
            ) from None
        position = self._position.get(key)
        if position is None:
            if "error" in row:
                return None
            raise DataError(
                f"{where}: answers the question {shown(row['id'])}, which is not asked now; give "
                "another --out, or ask it, too"
            )
        now = json.loads(json.dumps(self._asked[position].as_fields()))
        differs = [name for name in _OF_QUESTION if row.get(name) != now.get(name)]
        if differs and "error" in row:
            return None
        if differs:
            raise DataError(
                f"{where}: the question {shown(row['id'])} had another {differs[0]}: "
                f"{shown(row.get(differs[0]))}, now {shown(now.get(differs[0]))}; give another "
                "--out"
            )
        return position

    def _take_over(self, parts: Sequence[Path]) -> None:
        """Rows of earlier replicas become rows of `out`."""
        places = [place for place, row in self._rows.items() if row[0] in parts]
        try:
            self._copy(places, self._file)
            self._file.flush()
            os.fsync(self._file.fileno())
            for path in parts:
                path.unlink()
        except OSError as error:
            raise _cannot_write(self._out, error) from None

    def _copy(self, places: Sequence[int], target: BinaryIO) -> None:
        opened: dict[Path, BinaryIO] = {}
        try:
            for place in places:
                path, start, length = self._rows[place]
                if path not in opened:
                    opened[path] = path.open("rb")
                opened[path].seek(start)
                target.write(opened[path].read(length))
        finally:
            for file in opened.values():
                file.close()


def fingerprint(folder: Path) -> str:
    """Of a model's folder: names and sizes of its files, and how each begins and ends.

    So weights need not be read whole; a copy of the folder has the same.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(0, size - _END_BYTES))
            digest.update(file.read(_END_BYTES))
    return digest.hexdigest()


def _check_settings(out: Path, parts: Sequence[Path], settings: Mapping[str, Any]) -> None:
    """Raise `DataError` where rows are there that were not made with `settings`."""
    if not any(path.exists() and path.stat().st_size for path in (out, *parts)):
        return
    path = settings_file(out)
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError
    except (OSError, ValueError):
        raise DataError(
            f"--out {out}: exists, and beside it is no {path.name} that says how it was made; "
            "remove it, or give another name"
        ) from None
    now = json.loads(json.dumps(settings))
    differs = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if "model" in differs:  # where it lies does not count, what it is does
        message = f"checkpoint {before.get('checkpoint')}, now {now['checkpoint']}"
        if before.get("checkpoint") == now["checkpoint"]:
            message = f"other files in checkpoint {now['checkpoint']}"
        differs = [name for name in differs if name not in ("model", "checkpoint")]
        said = [message]
    else:
        differs = [name for name in differs if name != "checkpoint"]
        said = []
    said += [f"{n} {shown(before.get(n))}, now {shown(now.get(n))}" for n in differs]
    if said:
        raise DataError(
            f"--out {out}: its answers were made with {'; '.join(said)}. Give another --out, or "
            "the same settings"
        )


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"--out {path}: cannot be written: {error.strerror or error}")
