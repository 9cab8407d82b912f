"""OCRBench (Liu et al., 2023): 1,000 questions about texts in images, a point each.

Points are given in five categories, of which the first has six kinds of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item, Summary
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    Row,
    find_files,
    json_rows,
    parquet_rows,
)
from nvlm.evaluate.benchmarks.wording import after_images
from nvlm.evaluate.scorers.containment import contains_answer

_RECOGNITION = "Text Recognition"
# Points of all questions.
_MAX_POINTS = {
    _RECOGNITION: 300,
    "Scene Text-centric VQA": 200,
    "Doc-oriented VQA": 200,
    "Key Information Extraction": 200,
    "Handwritten Mathematical Expression Recognition": 100,
}
_KINDS_OF_RECOGNITION = frozenset(
    f"{kind} Recognition"
    for kind in ("Regular Text", "Irregular Text", "Artistic Text", "Handwriting",
                 "Digit String", "Non-Semantic Text")
)  # fmt: skip
_FORMULAS = "HME100k"


def _read(folder: Path, split: str) -> Iterator[Item]:
    paths = find_files(folder, [f"**/{split}-*.parquet", "**/OCRBench.json"])
    if paths[0].suffix == ".parquet":
        columns = ["dataset", "question", "question_type", "answer"]
        for number, row in enumerate(parquet_rows(paths, columns, image="image")):
            yield _item(row, number, "dataset", "question_type", "answer", row.images[0])
        return
    images = ImageFolders([folder / "OCRBench_Images", paths[0].parent / "OCRBench_Images"])
    for number, row in enumerate(json_rows(paths[0])):
        image = images.find(row.text("image_path"), row)
        yield _item(row, number, "dataset_name", "type", "answers", image)


def _item(row: Row, number: int, source: str, kind: str, answers: str, image: ImageSource) -> Item:
    group = row.text(kind)
    if group not in _MAX_POINTS and group not in _KINDS_OF_RECOGNITION:
        raise row.wrong(f"`{kind}` is {group}, which is no kind of OCRBench's")
    truths = row.get(answers)
    return Item(
        key=f"{number:04d}",
        question=row.text("question"),
        images=[image],
        truth={
            "answers": [truths] if isinstance(truths, str) else row.texts(answers),
            "is_formula": row.text(source) == _FORMULAS,
        },
        group=group,
    )


def _score(item: Item, answer: str) -> float:
    return contains_answer(answer, item.truth["answers"], item.truth["is_formula"])


def _summarise(items: Sequence[Item], answers: Sequence[str], scores: Sequence[float]) -> Summary:
    """Points of 1,000, and of each category's. Where only some questions were asked, as many as
    the same share of all would be.
    """
    by_category: dict[str, list[float]] = {}
    for item, score in zip(items, scores, strict=True):
        is_recognition = item.group in _KINDS_OF_RECOGNITION
        by_category.setdefault(_RECOGNITION if is_recognition else item.group, []).append(score)
    return Summary(
        sum(_MAX_POINTS.values()) * sum(scores) / len(scores),
        {
            category: points * sum(by_category[category]) / len(by_category[category])
            for category, points in _MAX_POINTS.items()
            if category in by_category
        },
    )


OCRBENCH = Benchmark(
    name="ocrbench",
    title="OCRBench",
    metric="points of 1,000",
    splits=("test",),
    files={
        "**/test-*.parquet": "questions and images, as echo840/OCRBench has them",
        "**/OCRBench.json": "or the official questions, with the folder OCRBench_Images",
    },
    source="https://huggingface.co/datasets/echo840/OCRBench or "
    "https://github.com/Yuliang-Liu/MultimodalOCR",
    read=_read,
    prompt=lambda item: after_images(item, item.question),
    score=_score,
    max_new_tokens=256,  # formulas, spelt out with spaces, have up to 200
    prompt_is="published",
    summarise=_summarise,
    paper_score=853,
)
