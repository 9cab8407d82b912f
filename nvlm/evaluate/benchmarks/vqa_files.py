"""Questions that several people answered: the official JSON of VQAv2 and OK-VQA, and what such
entries share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    Row,
    find_files,
    has_files,
    json_rows,
    parquet_rows,
    shown,
)
from nvlm.evaluate.scorers.vqa_accuracy import vqa_accuracy


@dataclass(frozen=True)
class VqaSplit:
    """The files of one split."""

    questions: str  # JSON, as a glob pattern
    annotations: str | None  # JSON; None: the answers are not published
    images: str  # folder of COCO's images, such as val2014
    parquet: str  # of lmms-lab, taken where there is no JSON; empty: none is published
    group: str = "answer_type"  # what scores are also given by


def coco_images(folder: Path) -> ImageFolders:
    """COCO's folders (train2014, ...): the benchmark's own, or `DIR/coco` that several share."""
    return ImageFolders([folder, folder / "images", folder.parent / "coco"])


def read_vqa(folder: Path, split: VqaSplit) -> Iterator[Item]:
    """The questions of official JSON and image folders, or of parquet files.

    Raises:
        DataError: files, images or answers are missing, or a row is damaged.
    """
    if split.parquet and not has_files(folder, split.questions):
        yield from _read_parquet(folder, split)
        return
    images = coco_images(folder)
    (questions, *_) = find_files(folder, [split.questions, *filter(None, [split.parquet])])
    annotations = None
    if split.annotations is not None:
        (file, *_) = find_files(folder, [split.annotations])
        annotations = {row.name("question_id"): row for row in json_rows(file, "annotations")}
    for row in json_rows(questions, "questions"):
        key = row.name("question_id")
        name = f"COCO_{split.images}_{row.integer('image_id'):012d}.jpg"
        image = images.find(f"{split.images}/{name}", row)
        truth: Mapping[str, list[str]] = {}
        group = ""
        if annotations is not None:
            if key not in annotations:
                raise row.wrong(f"question {key} is not among {split.annotations}")
            truth = {"answers": people_of(annotations[key])}
            group = str(annotations[key].values.get(split.group) or "")
        yield Item(key, row.text("question").strip(), [image], truth, group=group)


def _read_parquet(folder: Path, split: VqaSplit) -> Iterator[Item]:
    files = find_files(folder, [split.parquet])
    for row in parquet_rows(
        files, ("question_id", "question"), ("answers", split.group), image="image"
    ):
        truth = {} if split.annotations is None else {"answers": people_of(row)}
        group = str(row.values.get(split.group) or "")
        yield Item(
            row.name("question_id"), row.text("question").strip(), row.images, truth, group=group
        )


def people_of(row: Row) -> list[str]:
    """What each person answered: `answers` as texts, or as objects with an `answer`."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not answers:
        raise row.wrong(f"`answers` is {shown(answers)}, expected a list of what people answered")
    texts = []
    for one in answers:
        text = one.get("answer") if isinstance(one, dict) else one
        if not isinstance(text, str):
            raise row.wrong(f"`answers` has {shown(one)} where an answer is expected")
        texts.append(text)
    return texts


def short_answer_prompt(item: Item) -> str:
    return f"{IMAGE_MARK}\n{item.question}\nAnswer the question using a single word or phrase."


def score_vqa(item: Item, answer: str) -> float:
    return vqa_accuracy(answer, item.truth["answers"])


def most_given_answer(item: Item) -> str:
    """The answer that most people gave, of equally many the first: an example's answer."""
    return Counter(item.truth["answers"]).most_common(1)[0][0]


def on_one_line(answer: str) -> str:
    return " ".join(answer.split())
