"""OK-VQA (Marino et al., CVPR 2019): questions about COCO's photographs that need to know more than
is seen.

Scored by the annotations' `answer`, as the benchmark's own program does: those are stems of what
people wrote (`raw_answer`), so that `racing` is wrong where `race` is the stem. Some programs, such
as open_flamingo's, stem the model's answer as well and come to higher numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nvlm.evaluate.benchmarks.entry import Benchmark, Item
from nvlm.evaluate.benchmarks.vqa_files import (
    VqaSplit,
    most_given_answer,
    read_vqa,
    score_vqa,
    short_answer_prompt,
)

_SPLITS = {
    "val": VqaSplit(
        "**/OpenEnded_mscoco_val2014_questions.json",
        "**/mscoco_val2014_annotations.json",
        "val2014",
        "**/val2014-*.parquet",
        "question_type",
    ),
    "train": VqaSplit(
        "**/OpenEnded_mscoco_train2014_questions.json",
        "**/mscoco_train2014_annotations.json",
        "train2014",
        "",
        "question_type",
    ),
}


# What the annotations' `question_type` stands for.
_KINDS = {
    "one": "vehicles and transportation",
    "two": "brands, companies and products",
    "three": "objects, material and clothing",
    "four": "sports and recreation",
    "five": "cooking and food",
    "six": "geography, history, language and culture",
    "seven": "people and everyday life",
    "eight": "plants and animals",
    "nine": "science and technology",
    "ten": "weather and climate",
}


def _read(folder: Path, split: str) -> Iterator[Item]:
    for item in read_vqa(folder, _SPLITS[split]):
        yield replace(item, group=_KINDS.get(item.group, item.group))


OKVQA = Benchmark(
    name="okvqa",
    title="OK-VQA",
    metric="VQA accuracy",
    splits=("val",),
    files={
        "**/OpenEnded_mscoco_*_questions.json": "the questions, with the folder val2014 or "
        "train2014 here or in DIR/coco",
        "**/mscoco_*_annotations.json": "and what people answered",
        "**/*.parquet": "or lmms-lab's files val2014-*.parquet",
    },
    source="https://okvqa.allenai.org/download.html, or https://huggingface.co/datasets/lmms-lab/OK-VQA",
    read=_read,
    prompt=short_answer_prompt,
    score=score_vqa,
    max_new_tokens=16,
    train_split="train",
    answer=most_given_answer,
)
