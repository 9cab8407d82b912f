"""ChartQA (Masry et al., Findings of ACL 2022): 2,500 questions about charts.

Half of the test questions people wrote, half a model made of captions (`augmented`). The number is
the mean over all; the halves are its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    Row,
    find_files,
    json_rows,
    parquet_rows,
    shown,
)
from nvlm.evaluate.benchmarks.wording import SHORT_ANSWER, after_images
from nvlm.evaluate.scorers.relaxed_accuracy import relaxed_accuracy

_GROUPS = ("human", "augmented")
# Columns of HuggingFaceM4/ChartQA and of lmms-lab/ChartQA.
_COLUMNS = ("query", "label", "human_or_machine", "question", "answer", "type")


def _read(folder: Path, split: str) -> Iterator[Item]:
    paths = find_files(folder, [f"**/{split}-*.parquet", f"**/{split}_human.json"])
    if paths[0].suffix != ".parquet":
        yield from _official(folder, split)
        return
    for number, row in enumerate(parquet_rows(paths, [], optional=_COLUMNS, image="image")):
        if "type" in row.values:  # `human_test`, `augmented_test`
            group, question, label = row.text("type").split("_")[0], "question", "answer"
            if group not in _GROUPS:
                raise row.wrong(f"`type` is {group}, expected {' or '.join(_GROUPS)}")
        else:
            is_machine = row.integer("human_or_machine")
            if is_machine not in (0, 1):
                raise row.wrong(f"`human_or_machine` is {is_machine}, expected 0 or 1")
            group, question, label = _GROUPS[is_machine], "query", "label"
        yield _item(row, f"{group}-{number:05d}", group, question, label, row.images[0])


def _official(folder: Path, split: str) -> Iterator[Item]:
    for group in _GROUPS:
        (path, *_) = find_files(folder, [f"**/{split}_{group}.json"])
        images = ImageFolders([path.parent / "png", folder / "png"])
        for number, row in enumerate(json_rows(path)):
            image = images.find(row.text("imgname"), row)
            yield _item(row, f"{group}-{number:05d}", group, "query", "label", image)


def _item(row: Row, key: str, group: str, question: str, label: str, image: ImageSource) -> Item:
    """The item of a row whose columns `question` and `label` have the texts."""
    answer = row.get(label)
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, str | int | float):
        raise row.wrong(f"`{label}` is {shown(answer)}, expected one answer")
    return Item(key, row.text(question), [image], {"answer": str(answer)}, group=group)


def _prompt(item: Item) -> str:
    return after_images(item, f"{item.question}\n{SHORT_ANSWER}")


CHARTQA = Benchmark(
    name="chartqa",
    title="ChartQA",
    metric="relaxed accuracy",
    splits=("test", "val"),
    files={
        "**/test-*.parquet": "questions and images, as HuggingFaceM4/ChartQA and lmms-lab/ChartQA "
        "have them",
        "**/test_*.json": "or the official test_human.json and test_augmented.json, with the "
        "folder png",
    },
    source="https://huggingface.co/datasets/HuggingFaceM4/ChartQA or "
    "https://github.com/vis-nlp/ChartQA",
    read=_read,
    prompt=_prompt,
    score=lambda item, answer: relaxed_accuracy(answer, item.truth["answer"]),
    max_new_tokens=32,  # a number, a label, or a short list of labels
    prompt_is="published",
    paper_score=86.0,
    train_split="train",
    answer=lambda item: item.truth["answer"],
)
