"""Folders of pictures with captions, beside each picture or in lists.

Beside `NAME.jpg` stands `NAME.txt` or `NAME.caption` with its caption, or `NAME.json` with a
sample's fields. Lists (caption_lists.py) are `metadata.csv`, `captions.jsonl` and such, in the
folder or in those below it; they name files from where they stand. Where there is a list, pictures
that no list names are left out and counted.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from nvlm.data.samples.image_formats import IMAGE_TYPES
from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import printable
from nvlm.data.shards.regular_files import read_regular_file
from nvlm.data.shards.shard import MAX_TEXT_BYTES
from nvlm.data.shards.splits import (
    USUAL_SPLITS,
    choose_split,
    meant_split,
    split_of_file,
    split_of_folder,
    split_of_source,
)
from nvlm.errors import DataError
from nvlm.importers.caption_lists import Row, is_list, picture_names, read_list
from nvlm.importers.formats import ImportOptions
from nvlm.importers.image_files import FileFolder, find_file
from nvlm.importers.members import fields_of_members
from nvlm.importers.records import Keys, Picture, Record, Reject, make_record
from nvlm.importers.source_files import count_kinds, is_hidden, walk

_CAPTIONS = (".txt", ".caption")
_BESIDE = (*_CAPTIONS, ".json")


@dataclass(frozen=True)
class _Entry:
    where: str
    split: str | None
    folder: FileFolder  # that the names start from
    names: list[Any]
    fields: dict[str, Any] | SampleError | None = None  # None: of the files beside the picture
    name_field: str | None = None  # the field that the names are from
    beside: tuple[Path, ...] = ()


class CaptionsReader:
    def __init__(self, options: ImportOptions):
        folder = options.source
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of pictures")
        self._options = options
        self._wanted = options.from_split or options.split
        self._per_unit = options.samples_per_shard
        # The times of folders change when a picture is added.
        self.files: list[Path] = []
        self.notes: list[str] = []
        self._texts: set[Path] = set()  # that lie beside a picture
        files: list[Path] = []
        for place, paths in walk(folder):
            self.files.append(place)
            files += sorted(paths)
        visible = [path for path in files if not is_hidden(path.relative_to(folder))]
        pictures = [path for path in visible if path.suffix[1:].lower() in IMAGE_TYPES]
        lists = [path for path in visible if is_list(path.name)]
        if lists:
            entries = self._choose(self._of_lists(self._lists_of_split(lists)), "row")
            self.files += lists
        elif pictures:
            entries = self._choose(self._beside(visible, pictures), "picture")
        else:
            there = f"; it has {count_kinds(files, folder)}" if files else ""
            raise DataError(
                f"{folder} has no pictures (jpg, png, webp and whatever else Pillow opens){there}"
            )
        used = {*lists, *pictures, *self._texts}
        self._note_unread(entries, [path for path in files if path not in used])
        if lists:
            self._note_unnamed(entries, pictures)
        self._entries = list(zip(entries, _make_keys(entries), strict=True))
        self.num_samples: int | None = len(entries)
        self.num_units = -(-len(entries) // self._per_unit)

    def _shown(self, path: Path) -> str:
        return printable(str(path.relative_to(self._options.source)))

    def _lists_of_split(self, lists: list[Path]) -> list[Path]:
        """Those whose names say the split that is wanted, or none."""
        source = self._options.source
        splits = [split_of_file(path.relative_to(source), self._wanted) for path in lists]
        if any(split is not None for split in splits):
            names = [self._shown(path) for path in lists]
            taken, notes = choose_split(splits, names, self._options, source, "list")
            self.notes += notes
            lists = [path for path, is_taken in zip(lists, taken, strict=True) if is_taken]
        folders: dict[Path, Path] = {}
        for path in lists:
            if (other := folders.setdefault(path.parent, path)) != path:
                raise DataError(
                    f"{path.parent} has both {other.name} and {path.name}; keep one, which names "
                    "each picture once"
                )
        return lists

    def _of_lists(self, lists: list[Path]) -> Iterator[_Entry]:
        options = self._options
        for path in lists:
            inside = options.images or options.source
            base = options.images or path.parent
            folder = FileFolder(base, options.allow_outside, inside)
            split = split_of_file(path.relative_to(options.source), self._wanted)
            prefix = f"{self._shown(path)} " if len(lists) > 1 or path.parent != inside else ""
            for row in read_list(path):
                yield self._of_row(row, prefix, split, folder)

    def _of_row(self, row: Row, prefix: str, split: str | None, folder: FileFolder) -> _Entry:
        where, fields = row
        if isinstance(fields, SampleError):
            return _Entry(prefix + where, split, folder, [], fields)
        names, field = picture_names(fields)
        said = fields.get("split")
        if isinstance(said, str) and meant_split(said.strip()) in USUAL_SPLITS:
            split = meant_split(said.strip())
        if split is None and isinstance(names[0], str) and not PurePath(names[0]).is_absolute():
            split = split_of_folder(PurePath(names[0]).parent, self._wanted)
        return _Entry(prefix + where, split, folder, names, fields, field)

    def _beside(self, files: list[Path], pictures: list[Path]) -> Iterator[_Entry]:
        """Each picture with the files beside it that may have its text, whatever their case."""
        source = self._options.source
        beside: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        for path in files:
            if path.suffix.lower() in _BESIDE:
                beside[path.parent, path.stem.lower()].append(path)
        for path in sorted(pictures):
            name = path.relative_to(source)
            texts = [
                *beside.get((path.parent, path.stem.lower()), ()),
                *beside.get((path.parent, path.name.lower()), ()),  # `NAME.jpg.txt`
            ]
            self._texts.update(texts)
            split = split_of_folder(name.parent, self._wanted)
            folder = FileFolder(source, self._options.allow_outside)
            yield _Entry(str(name), split, folder, [str(name)], beside=tuple(texts))

    def _choose(self, found: Iterator[_Entry], what: str) -> list[_Entry]:
        """The entries of the split that is wanted; those that are wrong are kept, to be named."""
        entries = list(found)
        good = [entry for entry in entries if not isinstance(entry.fields, SampleError)]
        source = self._options.source
        splits = [entry.split for entry in good]
        if set(splits) == {None}:
            splits = [split_of_source(source, self._wanted)] * len(good)
        names = [printable(entry.where) for entry in good]
        taken, notes = choose_split(splits, names, self._options, source, what)
        self.notes += notes
        left = {id(e) for e, is_taken in zip(good, taken, strict=True) if not is_taken}
        return [entry for entry in entries if id(entry) not in left]

    def _note_unread(self, entries: list[_Entry], unread: list[Path]) -> None:
        alone = [path for path in unread if path.suffix.lower() in _CAPTIONS]
        if alone and entries and entries[0].fields is None:
            self.notes.append(
                f"texts without a picture of their name: {len(alone):,}, such as "
                f"{self._shown(alone[0])}"
            )
            unread = [path for path in unread if path not in set(alone)]
        if unread:
            kinds = count_kinds(unread, self._options.source)
            self.notes.append(f"files that are not read: {kinds}")

    def _note_unnamed(self, entries: list[_Entry], pictures: list[Path]) -> None:
        named = {
            os.path.abspath(entry.folder.path / name)
            for entry in entries
            for name in entry.names
            if isinstance(name, str)
        }
        unnamed = [path for path in pictures if os.path.abspath(path) not in named]
        if unnamed:
            self.notes.append(
                f"pictures that no list names: {len(unnamed):,}, such as {self._shown(unnamed[0])}"
            )

    def read(self, unit: int) -> Iterator[Record | Reject]:
        start = unit * self._per_unit
        for entry, key in self._entries[start : start + self._per_unit]:
            fields: Any = entry.fields
            try:
                if isinstance(key, SampleError):
                    raise key
                pictures = [Picture(None, _find(entry, name)) for name in entry.names]
                if fields is None:
                    fields = _read_beside(entry)
                text = {name: fields[name] for name in fields if name != entry.name_field}
                yield make_record(key, text, pictures, folder=entry.folder)
            except SampleError as error:
                yield Reject.of(entry.where, error, fields)


def _find(entry: _Entry, name: Any) -> Path:
    if entry.fields is None:
        return entry.folder.path / name  # seen when the folder was walked
    return find_file(entry.folder, name, "image")


def _make_keys(entries: list[_Entry]) -> Iterator[str | SampleError]:
    keys = Keys()
    for number, entry in enumerate(entries, 1):
        try:
            if isinstance(entry.fields, SampleError):
                raise entry.fields
            name = entry.names[0]
            path = PurePath(name) if isinstance(name, str) else PurePath()
            stem = path.with_suffix("") if path.name else None
            fields = entry.fields or {}
            yield keys.make(fields.get("id", stem), number, fields or entry.where)
        except SampleError as error:
            yield error


def _read_beside(entry: _Entry) -> dict[str, Any]:
    """The fields in the files beside a picture."""
    texts: dict[str, bytes] = {}
    for path in entry.beside:
        member = "json" if path.suffix.lower() == ".json" else "txt"
        if member in texts:
            names = " and ".join(path.name for path in entry.beside)
            raise SampleError("duplicate", f"beside it stand {names}; keep one of a kind")
        try:
            texts[member] = read_regular_file(path, MAX_TEXT_BYTES)
        except OSError as error:
            raise SampleError("text", f"{path.name}: {error}") from None
    if not texts:
        stem = PurePath(entry.names[0]).stem
        raise SampleError("missing_caption", f"no file {stem}.txt, .caption or .json beside it")
    return fields_of_members(texts, None)[0]


def open_source(options: ImportOptions) -> CaptionsReader:
    return CaptionsReader(options)
