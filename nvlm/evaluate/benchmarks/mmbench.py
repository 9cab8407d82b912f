"""MMBench (Liu et al., ECCV 2024), English dev: multiple choices in twenty abilities, each asked in
every rotation of its options.

The number is that of the circular evaluation: the share of questions that are right in all of their
rows. `plain` counts the rows as the questions were first put. Published numbers have answers that
name no option matched by a language model; here such an answer is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item, Summary
from nvlm.evaluate.benchmarks.reading import (
    Row,
    find_files,
    parquet_rows,
    shown,
    tsv_rows,
)
from nvlm.evaluate.scorers.circular import ROTATION, circular_hits, question_of
from nvlm.evaluate.scorers.options import option_score

_TSV = ("**/MMBench_DEV_EN*.tsv", "**/mmbench_dev_en*.tsv", "**/mmbench_dev_2*.tsv")
_PARQUET = "**/dev-*.parquet"
_LETTERS = "ABCDE"
_TEXTS = ("hint", "category", "l2-category", "L2-category", *_LETTERS)


def _read(folder: Path, split: str) -> Iterator[Item]:
    files = find_files(folder, [*_TSV, _PARQUET])
    num_rotated = 0
    images: dict[int, Sequence[ImageSource]] = {}
    for row in _rows(files):
        index = _index(row)
        images[index] = row.images or _image_of_other_row(row, images)
        num_rotated += index >= ROTATION
        yield _item(row, index, images[index])
    if not num_rotated:
        raise DataError(
            f"{files[0]}: no row is a question with its options rotated (an index of {ROTATION:,} "
            "and more), which the circular evaluation is made of; take the file from "
            f"{MMBENCH.source}"
        )


def _rows(files: Sequence[Path]) -> Iterator[Row]:
    if files[0].suffix == ".tsv":
        return tsv_rows(files[0], image="image")
    return parquet_rows(files, ("index", "question", "answer"), _TEXTS, image="image")


def _index(row: Row) -> int:
    value = row.name("index").removesuffix(".0")  # as pandas writes whole numbers beside gaps
    if not value.isdecimal():
        raise row.wrong(f"`index` is {value!r}, expected a whole number")
    return int(value)


def _image_of_other_row(
    row: Row, images: dict[int, Sequence[ImageSource]]
) -> Sequence[ImageSource]:
    """To save space, an image is there once; other rows have its row's index in its place."""
    other = str(row.values.get("image", "")).strip()
    if not other.isdecimal() or int(other) not in images:
        raise row.wrong(f"`image` is {shown(other)}: no base64, and no index of a row before")
    return images[int(other)]


def _item(row: Row, index: int, images: Sequence[ImageSource]) -> Item:
    options = []
    for letter in _LETTERS:
        text = str(row.values.get(letter) or "")
        if not text.strip() or text == "nan":  # as lmms-lab's files have empty cells
            break
        options.append(text.strip())
    letter = row.text("answer").strip()
    if letter not in _LETTERS[: len(options)]:
        raise row.wrong(f"`answer` is {letter!r}, which none of its {len(options)} options is")
    hint = str(row.values.get("hint") or "").strip()
    ability = row.values.get("l2-category") or row.values.get("L2-category") or ""
    return Item(
        str(index),
        row.text("question").strip(),
        images,
        {"letter": letter},
        options,
        str(row.values.get("category") or ""),
        {"hint": "" if hint == "nan" else hint, "ability": ability},
    )


def _prompt(item: Item) -> str:
    hint = item.fields["hint"]
    lines = [IMAGE_MARK, *([hint] if hint else []), item.question]
    lines += [f"{letter}. {text}" for letter, text in zip(_LETTERS, item.options)]
    return "\n".join([*lines, "Answer with the option's letter from the given choices directly."])


def _score(item: Item, answer: str) -> float:
    return option_score(answer, item.options, item.truth["letter"])


def _summarise(items: Sequence[Item], answers: Sequence[str], scores: Sequence[float]) -> Summary:
    indexes = [int(item.key) for item in items]
    hits = circular_hits((index, score == 1) for index, score in zip(indexes, scores))
    plain = [score for index, score in zip(indexes, scores) if index < ROTATION]
    parts = {"plain": 100 * sum(plain) / len(plain)} if plain else {}
    by_ability: dict[str, list[bool]] = {}
    abilities = {question_of(i): item.fields["ability"] for i, item in zip(indexes, items)}
    for question, hit in hits.items():
        if abilities[question]:
            by_ability.setdefault(abilities[question], []).append(hit)
    parts |= {name: 100 * sum(some) / len(some) for name, some in sorted(by_ability.items())}
    return Summary(100 * sum(hits.values()) / len(hits), parts)


MMBENCH = Benchmark(
    name="mmbench",
    title="MMBench",
    metric="circular accuracy",
    splits=("dev",),
    files={
        "**/*.tsv": "MMBench_DEV_EN.tsv, with the images as base64",
        _PARQUET: "or lmms-lab's files",
    },
    source="https://opencompass.openxlab.space/utils/benchmarks/MMBench/MMBench_DEV_EN.tsv, or "
    "https://huggingface.co/datasets/lmms-lab/MMBench_EN",
    read=_read,
    prompt=_prompt,
    score=_score,
    summarise=_summarise,
    can_resample=False,
)
