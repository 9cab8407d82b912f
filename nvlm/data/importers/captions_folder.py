"""Folders of pictures with captions: `NAME.txt` beside `NAME.jpg`, or a list of captions.

The list is `captions.jsonl` or, as Hugging Face's image folders have it, `metadata.jsonl`: lines
`{"file_name": NAME, "text": CAPTION}` (also "caption", or other fields of a sample).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvlm.data.importers.formats import ImportOptions
from nvlm.data.importers.image_files import find_file
from nvlm.data.importers.records import (
    Keys,
    Picture,
    Record,
    Reject,
    make_record,
    walk,
)
from nvlm.data.regular_files import read_regular_file
from nvlm.data.sample import IMAGE_TYPES, MAX_TEXT_BYTES, SampleError
from nvlm.errors import DataError

_LISTS = ("captions.jsonl", "metadata.jsonl")
_FILE_NAMES = ("file_name", "image", "filename", "file")


class CaptionsReader:
    def __init__(self, options: ImportOptions):
        folder = options.source
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of pictures")
        self._folder = options.file_folder(folder)
        self._per_unit = options.samples_per_shard
        lists = [folder / name for name in _LISTS if (folder / name).is_file()]
        if len(lists) > 1:
            raise DataError(f"{folder} has both {_LISTS[0]} and {_LISTS[1]}; keep one")
        # (where it stands, key, file name, fields); of pictures with .txt files fields is None.
        self._entries: list[tuple[str, str | SampleError, str, dict[str, Any] | None]] = []
        if lists:
            self._read_list(lists[0])
            self.files = lists
        else:
            self.files = self._read_folder(folder)
        self.num_samples: int | None = len(self._entries)
        self.num_units = -(-len(self._entries) // self._per_unit)

    def _read_list(self, path: Path) -> None:
        keys = Keys()
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                name = ""
                fields: dict[str, Any] = {}
                try:
                    fields = _parse(line)
                    name = next((fields[n] for n in _FILE_NAMES if n in fields), "")
                    stem = fields.get("id", _stem(name))
                    key: str | SampleError = keys.make(stem, number, fields)
                except SampleError as error:
                    key = error
                self._entries.append((f"line {number}", key, name, fields))

    def _read_folder(self, folder: Path) -> list[Path]:
        """Returns the folders with pictures, whose times change when one is added."""
        keys = Keys()
        places = dict(walk(folder))
        pictures = sorted(
            path
            for paths in places.values()
            for path in paths
            if path.suffix[1:].lower() in IMAGE_TYPES
        )
        if not pictures:
            raise DataError(f"{folder} has no pictures ({', '.join(sorted(IMAGE_TYPES))})")
        for path in pictures:
            name = str(path.relative_to(folder))
            stem = str(path.relative_to(folder).with_suffix(""))
            self._entries.append((name, keys.make(stem, 0, name), name, None))
        return sorted(places)

    def read(self, unit: int) -> Iterator[Record | Reject]:
        start = unit * self._per_unit
        for where, key, name, fields in self._entries[start : start + self._per_unit]:
            try:
                if isinstance(key, SampleError):
                    raise key
                if fields is not None:
                    path = find_file(self._folder, name, "image")
                else:
                    path = self._folder.path / name  # seen when the folder was walked
                    fields = {"caption": _read_caption(path.with_suffix(".txt"))}
                yield make_record(key, fields, [Picture(None, path)])
            except SampleError as error:
                yield Reject.of(where, error)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SampleError(
            "json", f"not readable as JSON, of which each line has one object: {error}"
        ) from None
    if not isinstance(value, dict):
        raise SampleError("fields", f"expected an object, found {type(value).__name__}")
    return value


def _stem(name: Any) -> Path | None:
    path = Path(name) if isinstance(name, str) else Path()
    return path.with_suffix("") if path.name else None


def _read_caption(path: Path) -> str:
    if not path.exists():
        raise SampleError("missing_caption", f"no file {path.name} beside it")
    try:
        return read_regular_file(path, MAX_TEXT_BYTES).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError("text", f"{path.name}: {error}") from None


def open_source(options: ImportOptions) -> CaptionsReader:
    return CaptionsReader(options)
