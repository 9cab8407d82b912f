"""DocVQA and InfographicVQA: questions about pages and posters, scored by ANLS.

Both come from the Robust Reading Competition (Mathew et al., "DocVQA", WACV 2021, and
"InfographicVQA", WACV 2022), in the same form. The truth of their test splits is not published: the
answers are written as the competition's server takes them, and have no score here. The paper's
number for DocVQA is of the test split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    Row,
    find_files,
    json_rows,
    parquet_rows,
    shown,
)
from nvlm.evaluate.benchmarks.wording import SHORT_ANSWER_OR_NUMBER, after_images
from nvlm.evaluate.scorers.anls import anls

# In the names of parquet files.
_PARQUET_SPLITS = {"val": "validation", "test": "test", "train": "train"}
_UNSCORED = ("test",)


def _read(
    patterns: Mapping[str, Sequence[str]],
    image_key: str,
    image_folders: Sequence[str],
    folder: Path,
    split: str,
) -> Iterator[Item]:
    """
    Args:
        patterns: of files, by split; the first that any file has counts.
        image_key: the key of the image's name in official files.
        image_folders: where official images may lie, below `folder` or beside the questions.
    """
    paths = find_files(folder, patterns[split])
    has_truth = split not in _UNSCORED
    if paths[0].suffix == ".parquet":
        needed = ["questionId", "question", *(["answers"] if has_truth else [])]
        for row in parquet_rows(paths, needed, image="image"):
            yield _item(row, row.images[0], has_truth)
        return
    beside = paths[0].parent
    places = [place / name for name in image_folders for place in (folder, beside, beside.parent)]
    images = ImageFolders(places)
    for row in json_rows(paths[0], "data"):
        name = row.text(image_key)
        flat = PurePosixPath(name).name  # newer downloads lack the folder that older files name
        is_flat = any((place / flat).is_file() for place in places)
        yield _item(row, images.find(flat if is_flat else name, row), has_truth)


def _item(row: Row, image: ImageSource, has_truth: bool) -> Item:
    key = row.name("questionId")
    if not key.isdecimal():  # the server takes a number
        raise row.wrong(f"`questionId` is {shown(key)}, expected a number")
    truth = {"answers": row.texts("answers")} if has_truth else {}
    return Item(key, row.text("question"), [image], truth)


def _prompt(item: Item) -> str:
    return after_images(item, f"{item.question}\n{SHORT_ANSWER_OR_NUMBER}")


def _score(item: Item, answer: str) -> float:
    return anls(answer, item.truth["answers"])


def _submission(items: Sequence[Item], answers: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"questionId": int(item.key), "answer": answer.strip()}
        for item, answer in zip(items, answers, strict=True)
    ]


def _first_truth(item: Item) -> str:
    return item.truth["answers"][0]


def _patterns(config: str, official: str) -> dict[str, list[str]]:
    """By split: in lmms-lab's repository, in others, and the official file."""
    return {
        split: [
            f"**/{config}/{name}-*.parquet",
            f"{name}-*.parquet",
            f"data/{name}-*.parquet",
            f"**/{official.format(split=split)}*.json",
        ]
        for split, name in _PARQUET_SPLITS.items()
    }


_DOCVQA = _patterns("DocVQA", "{split}_v1.0")
_INFOVQA = _patterns("InfographicVQA", "infographicsVQA_{split}_v1.0")
_SYSTEM_MESSAGE = "Follow the user's instruction and answer questions."
# An address, a title or a sum in words, up to some 60 tokens.
_MAX_NEW_TOKENS = 100

DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA",
    metric="ANLS",
    splits=("val", "test"),
    files={
        _DOCVQA["val"][0]: "questions and images, as lmms-lab/DocVQA has them",
        _DOCVQA["val"][-1]: "or the official questions, with the folder documents or "
        "spdocvqa_images",
    },
    source="https://huggingface.co/datasets/lmms-lab/DocVQA or https://rrc.cvc.uab.es/?ch=17",
    read=partial(_read, _DOCVQA, "image", ["", "spdocvqa_images"]),
    prompt=_prompt,
    score=_score,
    max_new_tokens=_MAX_NEW_TOKENS,
    system_message=_SYSTEM_MESSAGE,
    prompt_is="published",
    paper_score=92.6,
    paper_split="test",
    train_split="train",
    answer=_first_truth,
    unscored_splits=_UNSCORED,
    submission=_submission,
)

INFOVQA = Benchmark(
    name="infovqa",
    title="InfographicVQA",
    metric="ANLS",
    splits=("val", "test"),
    files={
        _INFOVQA["val"][0]: "questions and images, as lmms-lab/DocVQA has them",
        _INFOVQA["val"][-1]: "or the official questions, with the folder infographicsvqa_images",
    },
    source="https://huggingface.co/datasets/lmms-lab/DocVQA or https://rrc.cvc.uab.es/?ch=17",
    read=partial(_read, _INFOVQA, "image_local_name", ["infographicsvqa_images", "images", ""]),
    prompt=_prompt,
    score=_score,
    max_new_tokens=_MAX_NEW_TOKENS,
    system_message=_SYSTEM_MESSAGE,
    prompt_is="published",
    train_split="train",
    answer=_first_truth,
    unscored_splits=_UNSCORED,
    submission=_submission,
)
