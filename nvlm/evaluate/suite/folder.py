"""FOLDER/NAME: the answers to one benchmark, kept as they come: a killed evaluation goes on.

settings.json        checkpoint, settings and data: what is asked, of whom
parts/*.jsonl        answers as they come, a file for each model replica
predictions.jsonl    all answers in the benchmark's order, once there are all
skipped.jsonl        questions that could not be asked, with the reason
scores.json          what follows from the three files above
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvlm.errors import DataError
from nvlm.evaluate.suite.settings import differences
from nvlm.files import json_line, write_text

SETTINGS_FILE = "settings.json"
PREDICTIONS_FILE = "predictions.jsonl"
SKIPPED_FILE = "skipped.jsonl"
SCORES_FILE = "scores.json"
_PARTS = "parts"

Row = dict[str, Any]
# What is read of a row, and has to be there: files may have been edited.
_ANSWERED = {
    "key": str, "group": str, "question": str, "options": list, "truth": dict, "fields": dict,
    "messages": list, "images": list, "answer": str, "finish_reason": str,
}  # fmt: skip
_SKIPPED = {"key": str, "skipped": dict}


def check_folder_of(folder: Path, about: Mapping[str, Any]) -> None:
    """See that answers about `about` may go on in `folder`, which need not exist.

    Raises:
        DataError: it has those of other settings, another checkpoint or other data, or something
            else; the message says what differs.
    """
    if not folder.exists():
        return
    path = folder / SETTINGS_FILE
    if not path.is_file():
        if folder.is_dir() and not any(folder.iterdir()):
            return
        raise DataError(
            f"--out: {folder} exists and does not hold a benchmark's answers (no {SETTINGS_FILE}); "
            "give another folder"
        )
    there = read_json(path)
    differing = differences(*_identities(there, about))
    if differing:
        raise DataError(
            f"{folder} has answers that were asked for otherwise: {'; '.join(differing)}. Remove "
            "the folder, or give another --out"
        )


def _identities(
    there: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What must be the same for answers to go on with. Files that have come since are no matter."""
    files = there.get("data", {}).get("files", {})
    first, second = (
        {key: about.get(key) for key in ("benchmark", "checkpoint_hash", "settings")}
        | {
            "data": {
                pattern: about.get("data", {}).get("files", {}).get(pattern) for pattern in files
            }
        }
        for about in (there, now)
    )
    return first, second


def begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Make the folder, and note in it what is asked, unless it is there."""
    (folder / _PARTS).mkdir(parents=True, exist_ok=True)
    if not (folder / SETTINGS_FILE).is_file():
        write_text(folder / SETTINGS_FILE, json.dumps(about, indent=2) + "\n")


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows that are there, by key: of answers, and of what was skipped (with `skipped`).

    The last line of a part may be cut off by a kill; it is passed over, and the question asked
    again.

    Raises:
        DataError: another line is damaged.
    """
    rows: dict[str, Row] = {}
    whole = [folder / PREDICTIONS_FILE, folder / SKIPPED_FILE]
    for path in [*whole, *sorted((folder / _PARTS).glob("*.jsonl"))]:
        if path.is_file():
            for row in _rows_of(path, may_be_cut=path not in whole):
                rows[row["key"]] = row
    return rows


def _rows_of(path: Path, may_be_cut: bool) -> list[Row]:
    lines = path.read_bytes().split(b"\n")
    if lines.pop() and not may_be_cut:
        raise DataError(f"{path}: its last line is cut off; remove that line, and run again")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            assert isinstance(row["key"], str)
        except (ValueError, LookupError, TypeError, AssertionError):
            raise _no_answer(path, number) from None
        rows.append(row)
    return rows


def _no_answer(path: Path, number: int) -> DataError:
    return DataError(
        f"{path}, line {number}: not an answer of an evaluation; remove that line, and run again"
    )


class Part:
    """Context: one replica's file of rows, each on the disk before the next is asked for."""

    def __init__(self, folder: Path, replica: int):
        """
        Raises:
            OSError: it cannot be written.
        """
        path = folder / _PARTS / f"{replica:05d}.jsonl"
        if path.is_file():
            _drop_cut_line(path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, row: Row) -> None:
        self._file.write(json_line(row))
        self._file.flush()

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def finish(folder: Path, rows: Sequence[Row]) -> None:
    """Put all rows, in their order, in the place of the parts."""
    answered = [row for row in rows if "skipped" not in row]
    skipped = [row for row in rows if "skipped" in row]
    write_text(folder / PREDICTIONS_FILE, "".join(map(json_line, answered)))
    if skipped:
        write_text(folder / SKIPPED_FILE, "".join(map(json_line, skipped)))
    for path in (folder / _PARTS).glob("*.jsonl"):
        path.unlink()
    if (folder / _PARTS).is_dir():
        (folder / _PARTS).rmdir()


def read_predictions(folder: Path) -> tuple[list[Row], list[Row]]:
    """(rows of answers, rows of what was skipped), in the benchmark's order.

    Raises:
        DataError: there are none, a line is damaged, or a question is there twice.
    """
    path = folder / PREDICTIONS_FILE
    if not path.is_file():
        raise DataError(
            f"{folder}: has no {PREDICTIONS_FILE}: the evaluation is not done; give its command "
            "again"
        )
    answered = _whole_rows(path, _ANSWERED)
    path_of_skipped = folder / SKIPPED_FILE
    skipped = _whole_rows(path_of_skipped, _SKIPPED) if path_of_skipped.is_file() else []
    counts = Counter(row["key"] for row in (*answered, *skipped))
    if not counts:
        raise DataError(f"{path}: has no answers; give the command of the evaluation again")
    key, count = counts.most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{folder}: the question {key} is there {count} times; remove the lines that are "
            "too many"
        )
    return answered, skipped


def _whole_rows(path: Path, kinds: Mapping[str, type]) -> list[Row]:
    rows = _rows_of(path, may_be_cut=False)
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(name), kind) for name, kind in kinds.items()):
            raise _no_answer(path, number)
    return rows


def read_about(folder: Path) -> dict[str, Any]:
    """What is asked of whom, as `begin` noted it.

    Raises:
        DataError: it cannot be read, or says too little.
    """
    path = folder / SETTINGS_FILE
    about = read_json(path)
    settings = about.get("settings")
    if not isinstance(settings, dict) or not {"split", "chain_of_thought"} <= settings.keys():
        raise DataError(f"{path}: is not what an evaluation wrote: its `settings` say no split")
    return about


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        DataError: it cannot be read, or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: is no JSON object")
    return value


def benchmarks_in(folder: Path) -> list[Path]:
    """The folders of benchmarks in an evaluation's folder, in alphabetical order.

    Raises:
        DataError: there are none.
    """
    found = sorted(path.parent for path in folder.glob(f"*/{SETTINGS_FILE}"))
    if not found:
        raise DataError(
            f"{folder}: holds no evaluation: expected folders with {SETTINGS_FILE}, as `nvlm "
            "evaluate CHECKPOINT --suite` writes them"
        )
    return found


def _drop_cut_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
