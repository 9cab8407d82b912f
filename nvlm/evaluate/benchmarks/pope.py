"""POPE (Li et al., EMNLP 2023): whether a thing is in one of COCO's photographs, asked 9,000 times.

Half of the things are not there: drawn at random, or among those that are often seen (popular), or
often seen together with what is there (adversarial). The number is the mean of the three groups'
F1, as InternVL's and LLaVA's tables have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nvlm.evaluate.benchmarks.entry import Benchmark, Item, Summary
from nvlm.evaluate.benchmarks.reading import (
    Row,
    find_files,
    has_files,
    json_line_rows,
    parquet_rows,
)
from nvlm.evaluate.benchmarks.vqa_files import coco_images, short_answer_prompt
from nvlm.evaluate.scorers.yes_or_no import NO, YES, yes_no_metrics, yes_or_no

GROUPS = ("random", "popular", "adversarial")
_PARQUET = ("data/test-*.parquet", "test-*.parquet")


def _read(folder: Path, split: str) -> Iterator[Item]:
    if not has_files(folder, "**/coco_pope_*.json"):
        files = find_files(folder, ["**/coco_pope_*.json", *_PARQUET])
        columns = ("question_id", "question", "answer", "category")
        for row in parquet_rows(files, columns, image="image"):
            group = row.text("category")
            key = f"{group}-{row.name('question_id')}"
            truth = _truth(row, "answer")
            yield Item(key, row.text("question").strip(), row.images, truth, group=group)
        return
    images = coco_images(folder)
    for group in GROUPS:
        (path, *_) = find_files(folder, [f"**/coco_pope_{group}.json"])
        for row in json_line_rows(path):
            image = images.find(f"val2014/{row.text('image')}", row)
            key = f"{group}-{row.name('question_id')}"
            truth = _truth(row, "label")
            yield Item(key, row.text("text").strip(), [image], truth, group=group)


def _truth(row: Row, key: str) -> dict[str, str]:
    label = row.text(key).strip().lower()
    if label not in (YES, NO):
        raise row.wrong(f"`{key}` is {label!r}, expected yes or no")
    return {"label": label}


def _score(item: Item, answer: str) -> float:
    return float(yes_or_no(answer) == item.truth["label"])


def _summarise(items: Sequence[Item], answers: Sequence[str], scores: Sequence[float]) -> Summary:
    """The mean of the groups' F1; each group's metrics, and those of all answers together."""
    labels = [item.truth["label"] for item in items]
    parts = dict(yes_no_metrics(answers, labels))
    group_f1 = []
    for group in dict.fromkeys(item.group for item in items):
        members = [number for number, item in enumerate(items) if item.group == group]
        found = yes_no_metrics([answers[n] for n in members], [labels[n] for n in members])
        group_f1.append(found["F1"])
        parts |= {f"{group} {name}": value for name, value in found.items()}
    return Summary(sum(group_f1) / len(group_f1), parts)


POPE = Benchmark(
    name="pope",
    title="POPE",
    metric="F1, mean of the groups",
    splits=("test",),
    files={
        "**/coco_pope_*.json": "the questions: random, popular, adversarial, with the folder "
        "val2014 here or in DIR/coco",
        "**/test-*.parquet": "or lmms-lab's files",
    },
    source="https://github.com/AoiDragon/POPE (output/coco), or https://huggingface.co/datasets/lmms-lab/POPE",
    read=_read,
    prompt=short_answer_prompt,
    score=_score,
    max_new_tokens=16,
    summarise=_summarise,
)
