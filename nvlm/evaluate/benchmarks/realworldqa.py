"""RealWorldQA (xAI, 2024): 765 pictures of streets and rooms, each with a question.

A question ends with its own instruction: to answer with a letter, a word or a number. Right is an
answer equal to the truth without regard to case, outer spaces and one period at the end, as in
lmms-eval and VLMEvalKit's exact matching; the released Megatron scripts send the question alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.evaluate.benchmarks.entry import Benchmark, Item
from nvlm.evaluate.benchmarks.reading import find_files, parquet_rows
from nvlm.evaluate.score import normalise_answer

_FILES = "**/test-*.parquet"


def _read(folder: Path, split: str) -> Iterator[Item]:
    rows = parquet_rows(find_files(folder, [_FILES]), ("question", "answer"), image="image")
    for number, row in enumerate(rows):
        truth = {"answer": row.text("answer").strip()}
        yield Item(f"{number:04d}", row.text("question").strip(), row.images, truth)


def _prompt(item: Item) -> str:
    return f"{IMAGE_MARK}\n" * len(item.images) + item.question


def _score(item: Item, answer: str) -> float:
    return float(normalise_answer(answer) == normalise_answer(item.truth["answer"]))


REALWORLDQA = Benchmark(
    name="realworldqa",
    title="RealWorldQA",
    metric="exact match",
    splits=("test",),
    files={_FILES: "the questions with their pictures"},
    source="https://huggingface.co/datasets/xai-org/RealworldQA",
    read=_read,
    prompt=_prompt,
    score=_score,
    system_message="Follow the user's instruction and answer questions.",
    prompt_is="published",
    paper_score=69.7,
)
