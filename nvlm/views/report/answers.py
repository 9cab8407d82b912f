"""What a run's model answered to the same held-out questions, as it trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvlm.views.report.run_record import Asked, RunRecord

_MAX_ANSWERS = 8
_MAX_TEXT = 300


@dataclass(frozen=True)
class Answer:
    step: int
    text: str
    is_right: bool | None  # None: the record does not say


@dataclass(frozen=True)
class AskedQuestion:
    place: str  # source and sample
    task: str
    question: str
    truth: list[str]
    answers: list[Answer]  # in order of steps
    num_answers: int  # also those that are not shown


def asked_questions(run: RunRecord) -> tuple[list[AskedQuestion], int]:
    """The first questions with some of their answers, the first and the last among them.

    And how many questions there are.
    """
    return [_question(*entry) for entry in run.generations.items()], run.num_questions


def _question(asked: Asked, rows: list[dict[str, Any]]) -> AskedQuestion:
    source, sample, question = asked
    rows = sorted(rows, key=lambda row: row["step"])
    truth = rows[-1].get("truth", [])
    return AskedQuestion(
        place=f"{source}/{sample}" if source else sample,
        task=str(rows[-1].get("task", "")),
        question=_cut(question),
        truth=[_cut(str(some)) for some in (truth if isinstance(truth, list) else [truth])],
        answers=[
            Answer(row["step"], _cut(str(row.get("answer", ""))), row.get("correct"))
            for row in _evenly(rows)
        ],
        num_answers=len(rows),
    )


def _evenly(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) <= _MAX_ANSWERS:
        return rows
    last = len(rows) - 1
    return [rows[round(n * last / (_MAX_ANSWERS - 1))] for n in range(_MAX_ANSWERS)]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
