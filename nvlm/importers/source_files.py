"""The files of a source: those of one split that are read, and a count of those that are not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from nvlm.data.samples.text_members import printable
from nvlm.data.shards.splits import choose_split, split_of_file, split_of_source
from nvlm.errors import DataError
from nvlm.importers.formats import ImportOptions

_MAX_KINDS = 12


def find_source_files(
    options: ImportOptions, endings: tuple[str, ...], what: str
) -> tuple[list[Path], list[str]]:
    """The source itself, or the files below it whose names end as they should; and what to say.

    Args:
        endings: in lower case, such as `.tar.gz`.

    Raises:
        DataError: there are none, or none of the split.
    """
    source, wanted = options.source, options.from_split or options.split
    if not source.is_dir():
        return [source], check_split_of_source(options)
    named: list[Path] = []
    others: list[Path] = []
    for _, paths in walk(source):
        for path in paths:
            is_wanted = path.name.lower().endswith(endings)
            if not is_wanted or is_hidden(path.relative_to(source)) or _is_special(path):
                others.append(path)
            else:
                named.append(path)
    found: list[Path] = []
    links: list[Path] = []
    seen: set[str] = set()
    for path in sorted(named, key=lambda path: (path.is_symlink(), path)):
        real = os.path.realpath(path)
        (links if real in seen else found).append(path)
        seen.add(real)
    if not found:
        there = f"; it has {count_kinds(others, source)}" if others else ""
        raise DataError(f"{source} has no {what} ({', '.join(endings)}){there}")
    found.sort()
    splits = [split_of_file(path.relative_to(source), wanted) for path in found]
    if set(splits) == {None}:
        splits = [split_of_source(source, wanted)] * len(found)
    names = [printable(str(path.relative_to(source))) for path in found]
    taken, notes = choose_split(splits, names, options, source)
    if others:
        notes.append(f"files that are not read: {count_kinds(others, source)}")
    for path in links[:3]:
        notes.append(f"not read again: {printable(str(path))}, a link to a file that is read")
    if len(links) > 3:
        notes.append(f"not read again: {len(links) - 3:,} more such links")
    return [path for path, is_taken in zip(found, taken, strict=True) if is_taken], notes


def check_split_of_source(options: ImportOptions) -> list[str]:
    """What to say of a source that is one file; raises `DataError` if it is of another split."""
    split = split_of_source(options.source, options.from_split or options.split)
    return choose_split([split], [options.source.name], options, options.source)[1]


def _is_special(path: Path) -> bool:
    """Whether it is a folder, a pipe or a device; a link to nowhere is rejected as it is read."""
    return path.exists() and not path.is_file()


def is_hidden(path: PurePath) -> bool:
    """Whether a relative path is one of those that systems and programs keep for themselves."""
    return any(name.startswith(".") or name == "__MACOSX" for name in path.parts)


def count_kinds(paths: list[Path], folder: Path) -> str:
    """`12 .json, 1 hidden`: files by what their names end in."""
    counts = Counter(
        "hidden" if is_hidden(path.relative_to(folder)) else path.suffix.lower() or path.name
        for path in paths
    )
    kinds = [f"{count:,} {printable(kind)[:40]}" for kind, count in counts.most_common(_MAX_KINDS)]
    more = sum(counts.values()) - sum(count for _, count in counts.most_common(_MAX_KINDS))
    return ", ".join(kinds + ([f"{more:,} of other kinds"] if more else []))


def walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder at and below `folder`, links to folders followed once, and the files in it.

    Raises:
        OSError: one of them may not be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield Path(place), [Path(place, name) for name in names]
