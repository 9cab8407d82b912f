"""VQAv2 (Goyal et al., CVPR 2017): questions about COCO's photographs, ten answers of each.

The paper reports test-dev, whose answers only the server at eval.ai has: `--split vqav2=test-dev`
writes what it takes. val is scored here. `_TRAIN` is for few-shot examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nvlm.evaluate.benchmarks.entry import Benchmark, Item
from nvlm.evaluate.benchmarks.vqa_files import (
    VqaSplit,
    most_given_answer,
    on_one_line,
    read_vqa,
    score_vqa,
    short_answer_prompt,
)

_SPLITS = {
    "val": VqaSplit(
        "**/v2_OpenEnded_mscoco_val2014_questions.json",
        "**/v2_mscoco_val2014_annotations.json",
        "val2014",
        "**/validation-*.parquet",
    ),
    "test-dev": VqaSplit(
        "**/v2_OpenEnded_mscoco_test-dev2015_questions.json",
        None,
        "test2015",
        "**/testdev-*.parquet",
    ),
    "train": VqaSplit(
        "**/v2_OpenEnded_mscoco_train2014_questions.json",
        "**/v2_mscoco_train2014_annotations.json",
        "train2014",
        "",
    ),
}


def _read(folder: Path, split: str) -> Iterator[Item]:
    return read_vqa(folder, _SPLITS[split])


def _submission(items: Sequence[Item], answers: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"question_id": int(item.key), "answer": on_one_line(answer)}
        for item, answer in zip(items, answers, strict=True)
    ]


VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2",
    metric="VQA accuracy",
    splits=("val", "test-dev"),
    files={
        "**/v2_OpenEnded_mscoco_*_questions.json": "the questions, with the folder val2014, "
        "test2015 or train2014 here or in DIR/coco",
        "**/v2_mscoco_*_annotations.json": "and what people answered",
        "**/*.parquet": "or lmms-lab's files validation-*.parquet and testdev-*.parquet",
    },
    source="https://visualqa.org/download.html, or https://huggingface.co/datasets/lmms-lab/VQAv2",
    read=_read,
    prompt=short_answer_prompt,
    score=score_vqa,
    max_new_tokens=16,
    prompt_is="published",
    paper_score=85.4,
    paper_split="test-dev",
    train_split="train",
    answer=most_given_answer,
    unscored_splits=("test-dev",),
    submission=_submission,
)
