"""MathVista (Lu et al., ICLR 2024): 1,000 questions of `testmini`, mathematics in pictures.

Asked as NVLM's scripts do: multiple choice by question and options, free-form by the benchmark's
own `query`, which says what kind of number is wanted, without its word `Hint: `. Answers are found
by rules, not by a language model: scorers/mathvista_answers.py says what that changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nvlm.evaluate.benchmarks.entry import Benchmark, Item, Summary
from nvlm.evaluate.benchmarks.reading import Row, find_files, parquet_rows, shown
from nvlm.evaluate.benchmarks.wording import OPTION_LETTER, after_images, lettered
from nvlm.evaluate.scorers.mathvista_answers import mathvista_score
from nvlm.evaluate.scorers.options import LETTERS

_COLUMNS = [
    "pid", "question", "choices", "precision", "answer", "question_type", "answer_type",
    "metadata", "query",
]  # fmt: skip
_TYPES = ("integer", "float", "list", "text")


def _read(folder: Path, split: str) -> Iterator[Item]:
    paths = find_files(folder, [f"**/{split}-*.parquet"])
    for row in parquet_rows(paths, _COLUMNS, image="decoded_image"):
        yield _item(row)


def _item(row: Row) -> Item:
    answer, kind = row.text("answer"), row.text("answer_type")
    if kind not in _TYPES:
        raise row.wrong(f"`answer_type` is {kind}, expected {', '.join(_TYPES)}")
    is_choice = row.text("question_type") == "multi_choice"
    choices = row.texts("choices") if is_choice else []
    if is_choice and (answer not in choices or len(choices) > len(LETTERS)):
        raise row.wrong(f"`answer` is {shown(answer)}, which is none of `choices`")
    if kind in ("integer", "float") and not is_choice and not _is_number(answer):
        raise row.wrong(f"`answer` is {shown(answer)}, expected a number")
    metadata = row.get("metadata")
    return Item(
        key=row.name("pid"),
        question=row.text("question"),
        images=row.images,
        truth={
            "answer": answer,
            "answer_type": kind,
            "precision": row.values.get("precision"),
            "choices": choices,
        },
        options=choices,
        group=str(metadata.get("task", "")) if isinstance(metadata, dict) else "",
        fields={
            "query": row.text("query"),
            "skills": metadata.get("skills") or [] if isinstance(metadata, dict) else [],
        },
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _prompt(item: Item) -> str:
    if item.options:
        return after_images(item, f"{item.question}\n{lettered(item.options)}{OPTION_LETTER}")
    return after_images(item, item.fields["query"].replace("Hint: ", ""))


def _summarise(items: Sequence[Item], answers: Sequence[str], scores: Sequence[float]) -> Summary:
    """The share that is right, also by task and by skill, of which a question may have several."""
    by_part: dict[str, list[float]] = {}
    for item, score in zip(items, scores, strict=True):
        for part in (item.group, *item.fields["skills"]):
            by_part.setdefault(part, []).append(score)
    parts = {part: 100 * sum(of_part) / len(of_part) for part, of_part in sorted(by_part.items())}
    return Summary(100 * sum(scores) / len(scores), parts)


MATHVISTA = Benchmark(
    name="mathvista",
    title="MathVista",
    metric="accuracy",
    splits=("testmini",),
    files={"**/testmini-*.parquet": "questions and images"},
    source="https://huggingface.co/datasets/AI4Math/MathVista",
    read=_read,
    prompt=_prompt,
    score=lambda item, answer: mathvista_score(answer, item.truth),
    max_new_tokens=1024,  # queries ask for the value at the end: what comes before it is reasoning
    prompt_is="published",
    summarise=_summarise,
    paper_score=65.2,
)
