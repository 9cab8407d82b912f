"""TextVQA (Singh et al., "Towards VQA Models That Can Read", CVPR 2019): texts in photographs.

5,000 questions of the validation split, each answered by ten people. The texts that an OCR program
found, which come with them, are not shown to the model, as in NVLM's scripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    Row,
    find_files,
    json_rows,
    parquet_rows,
)
from nvlm.evaluate.benchmarks.wording import SHORT_ANSWER, after_images
from nvlm.evaluate.scorers.vqa_accuracy import textvqa_accuracy

_PARQUET = {"val": "**/validation-*.parquet", "train": "**/train-*.parquet"}
_JSON = {"val": "**/TextVQA_0.5.1_val.json", "train": "**/TextVQA_0.5.1_train.json"}
_IMAGES = "train_images"  # of both splits


def _read(folder: Path, split: str) -> Iterator[Item]:
    paths = find_files(folder, [_PARQUET[split], _JSON[split]])
    if paths[0].suffix == ".parquet":
        for row in parquet_rows(paths, ["question_id", "question", "answers"], image="image"):
            yield _item(row, row.images[0])
        return
    images = ImageFolders([folder / _IMAGES, paths[0].parent / _IMAGES])
    for row in json_rows(paths[0], "data"):
        yield _item(row, images.find(f"{row.name('image_id')}.jpg", row))


def _item(row: Row, image: ImageSource) -> Item:
    return Item(
        key=row.name("question_id"),
        question=row.text("question"),
        images=[image],
        truth={"answers": row.texts("answers")},
    )


def _prompt(item: Item) -> str:
    return after_images(item, f"{item.question}\n{SHORT_ANSWER}")


def _answer(item: Item) -> str:
    """What most people said; of equals the first."""
    return Counter(item.truth["answers"]).most_common(1)[0][0]


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    metric="VQA accuracy",
    splits=("val",),
    files={
        _PARQUET["val"]: "questions and images, as lmms-lab/textvqa has them",
        _JSON["val"]: f"or the official questions, with the folder {_IMAGES} (of both splits)",
    },
    source="https://huggingface.co/datasets/lmms-lab/textvqa or https://textvqa.org/dataset",
    read=_read,
    prompt=_prompt,
    score=lambda item, answer: textvqa_accuracy(answer, item.truth["answers"]),
    max_new_tokens=32,  # a few words; what signs say at length is about 20 tokens
    prompt_is="published",
    paper_score=82.1,
    train_split="train",
    answer=_answer,
)
