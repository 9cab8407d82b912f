"""LLaVA's files: `[{"id", "image": name or [names], "conversations": [{"from", "value"}]}]`.

Also one such object per line (`.jsonl`), and whatever else `normalise` knows: chat messages,
questions with answers, captions. Image names are relative to `--images`, else to the file's folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError
from nvlm.importers.formats import ImportOptions
from nvlm.importers.records import Keys, Record, Reject, make_record, sample_id
from nvlm.importers.source_files import check_split_of_source

_EXPECTED = "expected a JSON list of samples, or one sample per line"


class LlavaReader:
    def __init__(self, options: ImportOptions):
        self.files = [options.source]
        self.notes = check_split_of_source(options)
        self._folder = options.file_folder(options.source.parent)
        self._per_unit = options.samples_per_shard
        self._entries = _read_entries(options.source)
        self._keys = list(_make_keys(self._entries))
        self.num_samples: int | None = len(self._entries)
        self.num_units = -(-len(self._entries) // self._per_unit)

    def read(self, unit: int) -> Iterator[Record | Reject]:
        start = unit * self._per_unit
        for number in range(start, min(start + self._per_unit, len(self._entries))):
            name, entry = self._entries[number]
            key = self._keys[number]
            try:
                if isinstance(key, SampleError):
                    raise key
                yield self._record(key, entry)
            except SampleError as error:
                yield Reject.of(name, error, entry)

    def _record(self, key: str, entry: dict[str, Any]) -> Record:
        return make_record(key, entry, [], folder=self._folder)


def _make_keys(entries: list[tuple[str, Any]]) -> Iterator[str | SampleError]:
    keys = Keys()
    for number, (where, entry) in enumerate(entries):
        try:
            if isinstance(entry, SampleError):
                raise entry
            yield keys.make(sample_id(entry), number, entry, where)
        except SampleError as error:
            yield error


def _read_entries(path: Path) -> list[tuple[str, Any]]:
    """(where it stands, the entry or what is wrong with it) of every sample."""
    if not path.is_file():
        raise DataError(f"{path}: expected a .json or .jsonl file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8: {error}") from None
    if text.lstrip()[:1] == "[":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not readable as JSON: {error}; {_EXPECTED}") from None
        return [(f"entry {number}", _checked(value)) for number, value in enumerate(values)]
    lines = [(f"line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; {_EXPECTED}")
    entries = [(name, _parse_line(line)) for name, line in lines]
    if isinstance(entries[0][1], SampleError):
        _check_no_object(path, text)
    return entries


def _check_no_object(path: Path, text: str) -> None:
    """Raise `DataError` if the file is one JSON object over several lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        found = ", ".join(list(value)[:8])
        raise DataError(f"{path} is one JSON object, of {found}; {_EXPECTED}")


def _parse_line(line: str) -> Any:
    try:
        return _checked(json.loads(line))
    except (ValueError, RecursionError) as error:
        if isinstance(error, SampleError):
            return error
        return SampleError("json", f"not readable as JSON: {error}")


def _checked(value: Any) -> Any:
    if isinstance(value, dict):
        return value
    return SampleError("fields", f"expected an object, found {type(value).__name__}")


def open_source(options: ImportOptions) -> LlavaReader:
    return LlavaReader(options)
