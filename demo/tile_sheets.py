"""Writes questions about places on sheets of digits, for the tiny grids of docs/findings.md.

    python -m demo.tile_sheets ROOT [--seed 0]

Every image is a sheet with one small handwritten digit per tile, legible in its tile only, not in
the thumbnail. Four tasks: `tile` names a tile by its number, row by row, and `position` by row and
column, as spreadsheets do (R2C1); answers to both name it again (`R2C1:7`), so that the key stands
right before what is looked up. `reading` asks for all digits in order, `counting` for how many
tiles show a digit. Training samples ask three such questions about a sheet (`reading` one),
held-out ones a single one. `single`, one tile with its digit, is for the first stage and has no
held-out samples. The same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset

from demo import scenes
from demo.questions import pick
from nvlm.files import folder_beside
from nvlm.printing import say

Generator = np.random.Generator
Turns = list[tuple[str, str]]

SPLITS = ("train", "heldout")
# Task -> number of samples in (train, heldout).
NUM_SAMPLES = {
    "single": (800, 0),
    "tile": (800, 75),
    "position": (800, 75),
    "reading": (800, 75),
    "counting": (400, 75),
}
NUM_TRAINING_TURNS = {"single": 1, "tile": 3, "position": 3, "reading": 1, "counting": 3}
# (columns, rows): an aspect ratio that dynamic tiling with at most six tiles turns into this grid.
GRIDS = [(3, 2), (2, 3), (2, 2), (3, 1), (1, 3)]


def tile_turns(rng: Generator, shown: list[list[int]], num_turns: int) -> Turns:
    """Questions about as many different tiles; numbers count from 1, row by row."""
    flat = [digit for row in shown for digit in row]
    return [
        (f"Which digit is in tile {tile + 1}?", f"tile {tile + 1}:{flat[tile]}")
        for tile in rng.permutation(len(flat))[:num_turns].tolist()
    ]


def position_turns(rng: Generator, shown: list[list[int]], num_turns: int) -> Turns:
    """Questions about as many different places; rows and columns count from 1."""
    rows, columns = len(shown), len(shown[0])
    turns = []
    for place in rng.permutation(rows * columns)[:num_turns].tolist():
        row, column = divmod(place, columns)
        size, name = f"The sheet has {rows} rows and {columns} columns.", f"R{row + 1}C{column + 1}"
        turns.append((f"{size} Which digit is in {name}?", f"{name}:{shown[row][column]}"))
    return turns


def reading_turns(rng: Generator, shown: list[list[int]], num_turns: int) -> Turns:
    """One question: all digits, row by row."""
    assert num_turns == 1, "a sheet is read once"
    return [("Read all digits in order.", "".join(str(digit) for row in shown for digit in row))]


def counting_turns(rng: Generator, shown: list[list[int]], num_turns: int) -> Turns:
    """How often a digit is there, mostly of digits that are."""
    flat = [digit for row in shown for digit in row]
    turns = []
    for _ in range(num_turns):
        digit = pick(rng, flat) if rng.random() < 0.75 else int(rng.integers(10))
        turns.append((f"How many tiles show the digit {digit}?", str(flat.count(digit))))
    return turns


TASKS: dict[str, Callable[[Generator, list[list[int]], int], Turns]] = {
    "single": reading_turns,
    "tile": tile_turns,
    "position": position_turns,
    "reading": reading_turns,
    "counting": counting_turns,
}


def write_tile_sheets(root: Path, seed: int = 0) -> dict[str, int]:
    """Write ROOT/SPLIT/TASK/TASK-000000.tar; returns the number of samples by `SPLIT/TASK`.

    A task's shards that are there are replaced.
    """
    counts = {}
    for at, split in enumerate(SPLITS):
        for task, sizes in NUM_SAMPLES.items():
            if sizes[at]:
                _write_task(root / split / task, task, split, seed, sizes[at])
                counts[f"{split}/{task}"] = sizes[at]
    return counts


def _write_task(folder: Path, task: str, split: str, seed: int, num_samples: int) -> None:
    # A generator of its own: changing one task leaves the others as they are.
    rng = np.random.default_rng([seed, zlib.crc32(f"places/{split}/{task}".encode())])
    num_turns = NUM_TRAINING_TURNS[task] if split == "train" else 1
    with (
        folder_beside(folder) as beside,
        webdataset.ShardWriter(
            str(beside / f"{task}-%06d.tar"), maxcount=1000, verbose=0, encoder=False, mtime=0.0
        ) as writer,
    ):
        for number in range(num_samples):
            grid = (1, 1) if task == "single" else GRIDS[number % len(GRIDS)]
            scene, shown = scenes.sheet_scene(rng, split, grid, _values(rng, task))
            messages = []
            for question, answer in TASKS[task](rng, shown, num_turns):
                mark = "" if messages else "<image>\n"
                messages.append({"role": "user", "content": mark + question})
                messages.append({"role": "assistant", "content": answer})
            key = f"{split}-{task}-{number:05d}"
            content = {"id": key, "task": task, "messages": messages, "digits": shown}
            writer.write(
                {
                    "__key__": key,
                    "json": json.dumps(content).encode(),
                    "0.png": scenes.encode(scene.draw(), "png"),
                }
            )


def _values(rng: Generator, task: str) -> list[int]:
    """Digits that a sheet may show: three for counting, so that counts differ, else all."""
    return rng.permutation(10)[:3].tolist() if task == "counting" else list(range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, count in write_tile_sheets(arguments.root, arguments.seed).items():
        say(f"{name}: {count:,} samples")


if __name__ == "__main__":
    main()
