"""Splits in the names of files and folders: `train-00000-of-00002.parquet`, `val/0000.tar`.

A name says a split where one of its words is the split's: `test-1.tar` is of the split test,
`contest-1.tar`, `latest.tar` and `pretrain.tar` say nothing. This file imports no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path, PurePath
from typing import Protocol

from nvlm.errors import DataError

_WORDS = {
    "train": "train", "trainval": "train+validation", "test": "test",
    "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "eval": "validation",
}  # fmt: skip
# Too common in names of single files: `training_data.tar`.
_WORDS_OF_FOLDERS = _WORDS | {"training": "train", "testing": "test"}
# `train2017`, `test1`, `testA` and `testB`.
_WORD = re.compile(r"([^\W\d_]+?)(?:\d+|(?<=test)[ab])?")
USUAL_SPLITS = frozenset(_WORDS.values())
ALL, NONE = "all", "none"


def meant_split(name: str) -> str:
    """`val` and `dev` are validation; a name that is none of the usual ones is itself."""
    return _WORDS.get(name.lower(), name.lower())


def split_of_file(path: PurePath, wanted: str) -> str | None:
    """The split that a file's name says, or else the nearest folder's; None: they say none.

    Args:
        path: relative to the folder that is read.
        wanted: a split whose name counts as a word too.
    """
    return _said(path.name, wanted, _WORDS) or split_of_folder(path.parent, wanted)


def split_of_folder(path: PurePath, wanted: str) -> str | None:
    """The split that the nearest folder of a relative path says."""
    splits = (_said(name, wanted, _WORDS_OF_FOLDERS) for name in reversed(path.parts))
    return next((split for split in splits if split is not None), None)


def split_of_source(source: Path, wanted: str) -> str | None:
    """The split that the name of a source says by itself.

    A folder's must be nothing else, as `val2017`; of a file, that of its folder counts too where
    other splits stand beside it.
    """
    source = source.absolute()
    if source.is_dir():
        return _only(source.name, wanted)
    folder = _only(source.parent.name, wanted)
    if folder is not None:
        beside = (path for path in source.parent.parent.iterdir() if path.is_dir())
        others = {_only(path.name, wanted) for path in beside} - {folder, None}
        folder = folder if others else None
    return _said(source.name, wanted, _WORDS) or folder


def _only(name: str, wanted: str) -> str | None:
    word = _WORD.fullmatch(name.lower())
    if word is None:
        return None
    return (_WORDS_OF_FOLDERS | {wanted.lower(): meant_split(wanted)}).get(word[1])


def _said(name: str, wanted: str, known: dict[str, str]) -> str | None:
    words = [match[1] for match in map(_WORD.fullmatch, re.split(r"[\W_]+", name.lower())) if match]
    if wanted.lower() not in known and f"-{wanted.lower()}-" in f"-{'-'.join(words)}-":
        return wanted.lower()
    found = [known[word] for word in words if word in known]
    if found[:1] == ["test"] and "dev" in words:
        return "test"  # the test-dev of many benchmarks
    return "+".join(sorted(set(found))) or None


class SplitOptions(Protocol):
    @property
    def split(self) -> str: ...
    @property
    def from_split(self) -> str | None: ...


def choose_split(
    splits: list[str | None],
    names: list[str],
    options: SplitOptions,
    source: Path,
    what: str = "file",
) -> tuple[list[bool], list[str]]:
    """Which of a source's files are taken, and what to say of it.

    Args:
        splits, names: of each file, as `split_of_file` says and for messages.
        options: `split` is what the import calls it; `from_split` the split of the source that is
            to be taken, `ALL`, or `NONE` (files that say none). None: `split`, or everything where
            no name says one.
        what: what the files are called.

    Raises:
        DataError: what is wanted is not there, or names leave open what is to be taken.
    """
    wanted, from_split = options.split, options.from_split
    counts = Counter(splits)
    if from_split == ALL or (from_split is None and set(counts) <= {None}):
        others = [split for split in counts if split is not None]
        note = f"took the {what}s of all splits: {_listed(counts)}" if others else None
        return [True] * len(splits), [note] if note else []
    target = None if from_split == NONE else meant_split(from_split or wanted)
    ways = ", ".join(sorted(f"--from-split {split or NONE}" for split in counts))
    seen = f"{source}: {what}s by the split that their names say: {_listed(counts)}"
    if target not in counts:
        raise DataError(
            f"{seen}; none is {from_split or wanted}. Say which to take: {ways}, or "
            f"--from-split {ALL}"
        )
    taken = [split == target for split in splits]
    if from_split is None and None in counts:
        if set(counts) == {None, target}:
            odd = _count(what, counts[None])
            return [True] * len(splits), [
                f"took {odd} of no split by name beside those of {target}"
            ]
        odd = names[splits.index(None)]
        raise DataError(
            f"{seen}; {odd} says none. Say which to take: {ways}, or --from-split {ALL}"
        )
    if all(taken):
        return taken, []
    left = Counter({split: count for split, count in counts.items() if split != target})
    example = names[taken.index(False)]
    return taken, [
        f"took {_count(what, counts[target])} of {target or 'no split'}, left those of "
        f"{_listed(left)}, such as {example}"
    ]


def _count(what: str, count: int) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _listed(counts: Counter[str | None]) -> str:
    return ", ".join(f"{split or 'none'} ({count:,})" for split, count in counts.most_common())
