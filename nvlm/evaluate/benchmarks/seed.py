"""SEED-Bench (Li et al., CVPR 2024), its image part: 14,232 multiple choices in nine dimensions.

Of the published file, dimensions 1 to 9 are of images; those of videos are left out. The authors
compare the likelihood of each choice; asking for the letter is what LLaVA and InternVL do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    Row,
    find_files,
    has_files,
    json_rows,
    parquet_rows,
)
from nvlm.evaluate.scorers.options import option_score

_JSON = "**/SEED-Bench.json"
_PARQUET = "**/test-*.parquet"
_LETTERS = "ABCD"
_CHOICES = tuple(f"choice_{letter.lower()}" for letter in _LETTERS)
_DIMENSIONS: Mapping[int, str] = {
    1: "Scene Understanding", 2: "Instance Identity", 3: "Instance Attributes",
    4: "Instance Location", 5: "Instances Counting", 6: "Spatial Relation",
    7: "Instance Interaction", 8: "Visual Reasoning", 9: "Text Understanding",
}  # fmt: skip


def _read(folder: Path, split: str) -> Iterator[Item]:
    if has_files(folder, _JSON):
        images = ImageFolders(
            [folder / "SEED-Bench-image", folder / "images", folder / "seed_bench_image", folder]
        )
        for row in json_rows(find_files(folder, [_JSON])[0], "questions"):
            if row.text("data_type") == "image":
                yield _item(row, [images.find(row.text("data_id"), row)])
        return
    columns = ("question_id", "question", "answer", "data_type", "question_type_id", *_CHOICES)
    for row in parquet_rows(find_files(folder, [_JSON, _PARQUET]), columns, image="image"):
        if row.text("data_type") == "image":
            yield _item(row, row.images)


def _item(row: Row, images: Sequence[ImageSource]) -> Item:
    letter = row.text("answer").strip()
    if letter not in tuple(_LETTERS):
        raise row.wrong(f"`answer` is {letter!r}, expected one of {', '.join(_LETTERS)}")
    number = row.integer("question_type_id")
    if number not in _DIMENSIONS:
        raise row.wrong(f"`question_type_id` is {number}; dimensions of images are 1 to 9")
    options = [row.name(choice).strip() for choice in _CHOICES]
    return Item(
        row.name("question_id"),
        row.text("question").strip(),
        images,
        {"letter": letter},
        options,
        _DIMENSIONS[number],
    )


def _prompt(item: Item) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(_LETTERS, item.options, strict=True)]
    return "\n".join(
        [
            IMAGE_MARK,
            item.question,
            *lines,
            "Answer with the option's letter from the given choices directly.",
        ]
    )


def _score(item: Item, answer: str) -> float:
    return option_score(answer, item.options, item.truth["letter"])


SEED = Benchmark(
    name="seed",
    title="SEED-Bench (images)",
    metric="accuracy",
    splits=("test",),
    files={
        _JSON: "the questions, with the folder SEED-Bench-image",
        _PARQUET: "or lmms-lab's files",
    },
    source="https://huggingface.co/datasets/AILab-CVC/SEED-Bench or https://huggingface.co/datasets/lmms-lab/SEED-Bench",
    read=_read,
    prompt=_prompt,
    score=_score,
)
