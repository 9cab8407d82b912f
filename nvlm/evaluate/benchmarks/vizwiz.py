"""VizWiz-VQA (Gurari et al., CVPR 2018): what blind people asked about photographs they took.

Many photographs do not show what is asked for; then `unanswerable` is what most people said. The
prompt offers that word, as LLaVA's and InternVL's do. The truths of the test split are not
published: its answers are written as the server at eval.ai takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.evaluate.benchmarks.entry import Benchmark, Item, Summary
from nvlm.evaluate.benchmarks.reading import (
    ImageFolders,
    find_files,
    has_files,
    json_rows,
    parquet_rows,
)
from nvlm.evaluate.benchmarks.vqa_files import (
    most_given_answer,
    on_one_line,
    people_of,
    score_vqa,
)
from nvlm.evaluate.scorers.vqa_accuracy import normalise_vqa

_UNANSWERABLE = "unanswerable"
_WITHOUT_TRUTH = "test"


def _read(folder: Path, split: str) -> Iterator[Item]:
    pattern, parquet = f"**/{split}.json", f"**/{split}-*.parquet"
    if not has_files(folder, pattern):
        yield from _read_parquet(find_files(folder, [pattern, parquet]), split)
        return
    images = ImageFolders([folder / split, folder / "images" / split, folder / "images", folder])
    for row in json_rows(find_files(folder, [pattern])[0]):
        name = row.text("image")
        truth = {} if split == _WITHOUT_TRUTH else {"answers": people_of(row)}
        group = str(row.values.get("answer_type") or "")
        image = images.find(name, row)
        yield Item(name, row.text("question").strip(), [image], truth, group=group)


def _read_parquet(files: Sequence[Path], split: str) -> Iterator[Item]:
    for row in parquet_rows(files, ("question_id", "question"), ("answers", "category"), "image"):
        truth = {} if split == _WITHOUT_TRUTH else {"answers": people_of(row)}
        group = str(row.values.get("category") or "")
        name = f"{row.name('question_id').removesuffix('.jpg')}.jpg"
        yield Item(name, row.text("question").strip(), row.images, truth, group=group)


def _prompt(item: Item) -> str:
    return (
        f"{IMAGE_MARK}\n{item.question}\n"
        "When the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )


def _summarise(items: Sequence[Item], answers: Sequence[str], scores: Sequence[float]) -> Summary:
    """Besides the accuracy, how often the model and how often most people say `unanswerable`."""
    said = sum(normalise_vqa(answer) == _UNANSWERABLE for answer in answers)
    true = sum(normalise_vqa(most_given_answer(item)) == _UNANSWERABLE for item in items)
    parts = {
        "answers that say unanswerable": 100 * said / len(items),
        "questions that are unanswerable": 100 * true / len(items),
    }
    return Summary(100 * sum(scores) / len(items), parts)


def _submission(items: Sequence[Item], answers: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"image": item.key, "answer": on_one_line(answer)}
        for item, answer in zip(items, answers, strict=True)
    ]


VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz-VQA",
    metric="VQA accuracy",
    splits=("val", "test"),
    files={
        "**/*.json": "val.json, test.json or train.json, with a folder of images of that name",
        "**/*.parquet": "or lmms-lab's files val-*.parquet and test-*.parquet",
    },
    source="https://vizwiz.org/tasks-and-datasets/vqa/, or https://huggingface.co/datasets/lmms-lab/VizWiz-VQA",
    read=_read,
    prompt=_prompt,
    score=score_vqa,
    max_new_tokens=16,
    summarise=_summarise,
    train_split="train",
    answer=most_given_answer,
    unscored_splits=(_WITHOUT_TRUTH,),
    submission=_submission,
)
