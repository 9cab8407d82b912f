"""A benchmark's files below `--data DIR/NAME`: which are there, which are missing, which bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvlm.evaluate.benchmarks.entry import Benchmark
from nvlm.hashes import hash_json

# Of more (folders of pictures), names and sizes are compared; each answer's row has the SHA-256 of
# the pictures that it saw.
_MAX_HASHED_FILES = 64
_MAX_HASHED_BYTES = 8 * 2**30
_BLOCK_BYTES = 2**22
# Where `hf download --local-dir` notes the revision of each file: a commit in the first line.
_HUB_NOTES = ".cache/huggingface/download"


def find_files(benchmark: Benchmark, data: Path) -> dict[str, list[Path]]:
    """The files that each of the benchmark's patterns finds, in alphabetical order."""
    folder = data / benchmark.name
    return {
        pattern: sorted(path for path in folder.glob(pattern) if path.is_file())
        for pattern in benchmark.files
    }


def list_files(benchmark: Benchmark, data: Path) -> str:
    """What the benchmark wants, what of it is there, and where to get it: indented lines.

    Several patterns may be of different splits, or different forms in which it is published.
    """
    lines = []
    for pattern, paths in find_files(benchmark, data).items():
        there = f"{len(paths):,} found" if paths else "none found"
        lines.append(f"{data / benchmark.name}/{pattern}: {benchmark.files[pattern]}: {there}")
    lines.append(f"they come from {benchmark.source}")
    return "\n  ".join(lines)


def lacks_files(benchmark: Benchmark, data: Path) -> bool:
    """Whether nothing of it is there. What is there in part is no lack but a fault."""
    return not any(find_files(benchmark, data).values())


def describe_files(benchmark: Benchmark, data: Path) -> dict[str, Any]:
    """What tells the files from others of the same names, as JSON.

    `files` has a SHA-256 for each pattern: of the files' contents, or of names and sizes where they
    are many or large; `hub_revisions` the commits that a download from the Hugging Face hub noted.
    """
    folder = data / benchmark.name
    found = find_files(benchmark, data)
    return {
        "files": {pattern: _hash(folder, paths) for pattern, paths in found.items() if paths},
        "hub_revisions": _hub_revisions(folder),
    }


def _hash(folder: Path, paths: Sequence[Path]) -> str:
    sizes = [path.stat().st_size for path in paths]
    are_many = len(paths) > _MAX_HASHED_FILES or sum(sizes) > _MAX_HASHED_BYTES
    return hash_json(
        [
            (str(path.relative_to(folder)), size if are_many else _content(path))
            for path, size in zip(paths, sizes, strict=True)
        ]
    )


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _hub_revisions(folder: Path) -> list[str]:
    revisions = set()
    for note in (folder / _HUB_NOTES).rglob("*.metadata"):
        lines = note.read_text(errors="replace").splitlines()
        if lines and len(lines[0]) == 40:
            revisions.add(lines[0])
    return sorted(revisions)


def files_found(benchmark: Benchmark, data: Path) -> str:
    """How many of the benchmark's files are there, for a table."""
    paths = {path for found in find_files(benchmark, data).values() for path in found}
    return f"{len(paths):,} found" if paths else "none"
