"""ScienceQA (Lu et al., "Learn to Explain", NeurIPS 2022): 4,241 test questions of school science,
2,017 of which have an image.

All are asked, as in the paper of LLaVA; those with an image (elsewhere called ScienceQA-IMG) are a
part of the score. The hint is the context; lectures and solutions are not shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item, Summary
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    Row,
    find_files,
    parquet_rows,
    read_json,
    shown,
)
from nvlm.evaluate.benchmarks.wording import OPTION_LETTER, after_images, lettered
from nvlm.evaluate.scorers.options import LETTERS, option_score

# In the names of parquet files.
_PARQUET_SPLITS = {"test": "test", "val": "validation", "train": "train"}
_OFFICIAL = "**/pid_splits.json"


def _read(folder: Path, split: str) -> Iterator[Item]:
    name = f"{_PARQUET_SPLITS[split]}-*.parquet"
    # lmms-lab's repository has the questions with an image a second time.
    paths = find_files(folder, [f"**/ScienceQA-FULL/{name}", f"**/{name}", _OFFICIAL])
    if paths[0].suffix != ".parquet":
        yield from _official(folder, paths[0], split)
        return
    columns = ["question", "choices", "answer", "hint", "subject"]
    for number, row in enumerate(parquet_rows(paths, columns, image_columns=["image"])):
        yield _item(row, f"{number:05d}", list(row.by_column.values()))


def _official(folder: Path, path: Path, split: str) -> Iterator[Item]:
    problems_path = path.parent / "problems.json"
    keys, problems = read_json(path), read_json(problems_path)
    if not isinstance(keys, Mapping) or not isinstance(keys.get(split), list):
        raise DataError(f"{path}: no list `{split}` in it")
    images = ImageFolders([place / name for place in (folder, path.parent)
                           for name in (f"images/{split}", split)])  # fmt: skip
    for key in keys[split]:
        values = problems.get(key) if isinstance(problems, Mapping) else None
        if not isinstance(values, Mapping):
            raise DataError(f"{problems_path}: no object {shown(key)}, which {path} names")
        row = Row(values, f"{problems_path} {key}")
        image = values.get("image")
        yield _item(row, key, [images.find(f"{key}/{image}", row)] if image else [])


def _item(row: Row, key: str, images: Sequence[ImageSource]) -> Item:
    options, number = row.texts("choices"), row.integer("answer")
    if not 0 <= number < len(options) <= len(LETTERS):
        raise row.wrong(f"`answer` is {number}, which is none of {len(options)} choices")
    return Item(
        key=key,
        question=row.text("question"),
        images=images,
        truth={"letter": LETTERS[number]},
        options=options,
        group=row.text("subject"),
        fields={"hint": row.values.get("hint") or "", "has_image": bool(images)},
    )


def _prompt(item: Item) -> str:
    context = f"Context: {item.fields['hint']}\n" if item.fields["hint"] else ""
    text = f"{context}{item.question}\n{lettered(item.options)}{OPTION_LETTER}"
    return after_images(item, text)


def _score(item: Item, answer: str) -> float:
    return option_score(answer, item.options, item.truth["letter"])


def _summarise(items: Sequence[Item], answers: Sequence[str], scores: Sequence[float]) -> Summary:
    by_part: dict[str, list[float]] = {}
    for item, score in zip(items, scores, strict=True):
        by_part.setdefault("with an image" if item.fields["has_image"] else "without", []).append(
            score
        )
        by_part.setdefault(item.group, []).append(score)
    parts: dict[str, Any] = {
        part: 100 * sum(of_part) / len(of_part) for part, of_part in sorted(by_part.items())
    }
    return Summary(100 * sum(scores) / len(scores), parts)


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA",
    metric="accuracy",
    splits=("test", "val"),
    files={
        "**/test-*.parquet": "questions and images, as derek-thomas/ScienceQA and "
        "lmms-lab/ScienceQA (ScienceQA-FULL) have them",
        _OFFICIAL: "or the official lists, with problems.json and the folder images",
    },
    source="https://huggingface.co/datasets/derek-thomas/ScienceQA or https://scienceqa.github.io",
    read=_read,
    prompt=_prompt,
    score=_score,
    max_new_tokens=32,  # a letter, or it with the option's text
    summarise=_summarise,
    train_split="train",
    answer=lambda item: item.truth["letter"],
)
