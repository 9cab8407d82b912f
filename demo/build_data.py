"""Writes the demo's data: WebDataset shards of real images with questions, train and held-out.

    ROOT/train/<source>/<source>-000000.tar      ROOT/heldout/<source>/<source>-000000.tar

Handwritten digits, photographs that ship in Python packages, rendered documents and charts, and
text. Nothing is downloaded, and the same seed writes the same bytes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import webdataset
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from demo import questions, scenes
from demo.questions import pick
from nvlm.errors import DataError
from nvlm.files import folder_beside
from nvlm.workers import map_forked

Generator = np.random.Generator

SPLITS = ("train", "heldout")
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
# Samples per shard file.
_SHARD_SIZE = 1000


@dataclass(frozen=True)
class Sample:
    """One question and its answer; `images` are encoded files with their extension."""

    question: str
    answer: str
    images: list[tuple[str, bytes]] = field(default_factory=list)
    # What the answer depends on, for people who look at the shard.
    details: dict = field(default_factory=dict)


def build_demo_data(root: Path, seed: int = 0, progress: bool = True) -> dict[str, int]:
    """Write all shards below `root`; returns the number of samples per `split/source`.

    A folder that already has shards of a source gets that source's shards replaced. Sources are
    written beside each other, on as many cores as there are.

    Raises:
        DataError: `root` is a file, an installed package lacks one of its photographs, or a
            process that wrote was killed.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file; name a folder for the demo's data")
    sizes = {
        (split, source): NUM_SAMPLES[source][number]
        for number, split in enumerate(SPLITS)
        for source in SOURCES
    }
    num_written = get_context("fork").Value("q", 0)

    def advance() -> None:
        with num_written:
            num_written.get_obj().value += 1

    def write(part: tuple[str, str]) -> int:
        split, source = part
        return _write_source(root / split / source, source, split, seed, advance)

    largest_first = sorted(sizes, key=lambda part: -sizes[part])
    num_processes = len(os.sched_getaffinity(0))
    who = f"{root}: a process that drew images"
    with Progress(*_COLUMNS, disable=not progress) as bars:
        bar = bars.add_task("images and questions", total=sum(sizes.values()))

        def show() -> None:
            bars.update(bar, completed=num_written.get_obj().value)

        with closing(map_forked(write, largest_first, num_processes, who, show)) as written:
            counts = {}
            for part, number in written:
                counts[part] = number
                show()
    return {f"{split}/{source}": counts[split, source] for split, source in sizes}


def _write_source(
    folder: Path, source: str, split: str, seed: int, advance: Callable[[], None]
) -> int:
    """Write one source beside its folder and rename it into place."""
    num_samples = NUM_SAMPLES[source][SPLITS.index(split)]
    # A generator of its own: changing one source leaves the others as they are.
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{source}".encode())])
    make_sample = SOURCES[source]
    with (
        folder_beside(folder) as beside,
        webdataset.ShardWriter(
            str(beside / f"{source}-%06d.tar"),
            maxcount=_SHARD_SIZE,
            verbose=0,
            encoder=False,
            mtime=0.0,
        ) as writer,
    ):
        for number in range(num_samples):
            sample = make_sample(rng, split, number)
            writer.write(_record(f"{split}-{source}-{number:05d}", source, sample))
            advance()
    return num_samples


def _record(key: str, source: str, sample: Sample) -> dict[str, bytes | str]:
    marks = "<image>\n" * len(sample.images)
    content = {
        "id": key,
        "task": source,
        "messages": [
            {"role": "user", "content": marks + sample.question},
            {"role": "assistant", "content": sample.answer},
        ],
        **sample.details,
    }
    record: dict[str, bytes | str] = {"__key__": key, "json": json.dumps(content).encode()}
    for place, (kind, data) in enumerate(sample.images):
        record[f"{place}.{kind}"] = data
    return record


def _digits(rng: Generator, split: str, number: int) -> Sample:
    digit = number % 10
    scene = scenes.digit_scene(rng, split, digit)
    images = [("png", scenes.encode(scene.draw(), "png"))]
    return Sample(questions.digit_question(rng), str(digit), images)


def _sheets(rng: Generator, split: str, number: int) -> Sample:
    grid = scenes.SHEET_GRIDS[number % len(scenes.SHEET_GRIDS)]
    scene, shown = scenes.sheet_scene(rng, split, grid)
    columns, rows = grid
    row, column = int(rng.integers(rows)), int(rng.integers(columns))
    question = questions.sheet_question(rng, rows, columns, row + 1, column + 1)
    images = [("png", scenes.encode(scene.draw(), "png"))]
    details = {"digits": shown, "row": row + 1, "column": column + 1}
    return Sample(question, str(shown[row][column]), images, details)


def _search(rng: Generator, split: str, number: int) -> Sample:
    grid = scenes.SHEET_GRIDS[number % len(scenes.SHEET_GRIDS)]
    scene, digit, tile = scenes.search_scene(rng, split, grid)
    images = [("png", scenes.encode(scene.draw(), "png"))]
    return Sample(questions.search_question(rng), str(digit), images, {"tile": tile + 1})


def _ocr(rng: Generator, split: str, number: int) -> Sample:
    scene, text = scenes.document_scene(rng)
    images = [("png", scenes.encode(scene.draw(), "png"))]
    return Sample(questions.document_question(rng), text, images)


def _charts(rng: Generator, split: str, number: int) -> Sample:
    scene, colours, heights = scenes.chart_scene(rng)
    question, answer = questions.chart_question(rng, colours, heights)
    images = [("png", scenes.encode(scene.draw(), "png"))]
    return Sample(question, answer, images, {"bars": dict(zip(colours, heights))})


def _photos(rng: Generator, split: str, number: int) -> Sample:
    scene, subject = scenes.photo_scene(rng, split)
    images = [("jpg", scenes.encode(scene.draw(), "jpg"))]
    return Sample(questions.photo_question(rng), questions.photo_answer(subject), images)


def _multi_image(rng: Generator, split: str, number: int) -> Sample:
    digits = rng.permutation(10)[: 2 + number % 2].tolist()
    drawn = [scenes.digit_scene(rng, split, digit).draw() for digit in digits]
    question, answer = questions.multi_image_question(rng, digits)
    images = [("png", scenes.encode(image, "png")) for image in drawn]
    return Sample(question, answer, images, {"digits": digits})


def _text(rng: Generator, split: str, number: int) -> Sample:
    available = questions.text_questions(split)
    if split == "heldout":
        # Evenly over the list, so that every kind of question is asked and none twice.
        question, answer = available[number * len(available) // NUM_SAMPLES["text"][1]]
    else:
        question, answer = pick(rng, available)
    return Sample(question, answer)


SOURCES: dict[str, Callable[[Generator, str, int], Sample]] = {
    "digits": _digits,
    "search": _search,
    "sheets": _sheets,
    "ocr": _ocr,
    "charts": _charts,
    "photos": _photos,
    "multi_image": _multi_image,
    "text": _text,
}
# Source -> number of samples in (train, heldout).
NUM_SAMPLES = {
    "digits": (1000, 60),
    "search": (600, 60),
    "sheets": (600, 60),
    "ocr": (450, 50),
    "charts": (300, 50),
    "photos": (350, 50),
    "multi_image": (350, 50),
    "text": (300, 50),
}
