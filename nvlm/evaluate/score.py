"""Right answers per task, beside what always giving the best single answer would reach.

What counts as right follows from the sample (`Truth.metric`):

    exact_match      the answer is one of the accepted ones
    multiple_choice  the answer names the right option: `B`, `b.`, `(B)`, `B) text` or its text
    vqa_accuracy     ten people answered: the share of them that agrees, as VQAv2 counts it

Texts are compared by `normalise_answer`. docs/evaluate.md has the same rules for readers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUM_ANNOTATORS = 10
_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_LETTER_AND_TEXT = re.compile(r"\(?([A-Za-z])(?:\)[.:]?|[.:])\s*(\S.*)", re.DOTALL)


@dataclass(frozen=True)
class Truth:
    """What counts as right for one question."""

    answers: list[str]  # accepted ones; of a multiple choice the letter
    # How many of ten annotators gave each answer. Empty: any of them is right.
    counts: list[int] = field(default_factory=list)
    options: list[str] = field(default_factory=list)  # of a multiple choice, from A on

    @property
    def metric(self) -> str:
        if self.options:
            return "multiple_choice"
        return "vqa_accuracy" if self.counts else "exact_match"

    def as_fields(self) -> dict[str, Any]:
        """Fields of an output row, as `truth_of` reads them."""
        fields: dict[str, Any] = {"truth": self.answers}
        if self.counts:
            fields["truth_counts"] = self.counts
        if self.options:
            fields["options"] = self.options
        return fields


def truth_of(row: Mapping[str, Any]) -> Truth:
    """The truth of an output row."""
    truth = row["truth"]
    # Files of earlier versions have one text.
    return Truth(
        [truth] if isinstance(truth, str) else truth,
        row.get("truth_counts", []),
        row.get("options", []),
    )


@dataclass(frozen=True)
class TaskScore:
    """One task of one evaluation, or one source's part of it. Shares are between 0 and 1."""

    task: str
    num_samples: int
    num_correct: float  # whole, unless people disagree (vqa_accuracy)
    majority_answer: str
    num_majority: float
    metrics: tuple[str, ...] = ("exact_match",)
    by_source: dict[str, TaskScore] = field(default_factory=dict)  # where there are several

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_samples

    @property
    def majority(self) -> float:
        """Accuracy of answering `majority_answer` to every sample of the task."""
        return self.num_majority / self.num_samples

    @property
    def points_over_majority(self) -> float:
        """Percentage points above the majority-answer baseline."""
        return 100 * (self.num_correct - self.num_majority) / self.num_samples


def normalise_answer(text: str) -> str:
    """Without surrounding space, in lower case, without one trailing period."""
    return text.strip().lower().removesuffix(".").rstrip()


def score_answer(answer: str, truth: Truth) -> float:
    """1 for right, 0 for wrong; between them where annotators disagree."""
    if truth.options:
        return int(_option(answer, truth.options) == truth.answers[0])
    return _credits(truth).get(normalise_answer(answer), 0)


def vqa_accuracy(num_agreeing: int) -> float:
    """VQAv2's accuracy of an answer that `num_agreeing` of ten annotators gave.

    min(n / 3, 1), averaged over the ten sets of nine annotators: 0.3, 0.6, 0.9 and 1 for one, two,
    three and more. From the evaluation code of visualqa.org (Antol et al., "VQA: Visual Question
    Answering", ICCV 2015; Goyal et al., CVPR 2017), whose own normalisation of texts (articles,
    number words) is not applied here.
    """
    rest = NUM_ANNOTATORS - num_agreeing
    tenths = num_agreeing * min(num_agreeing - 1, 3) + rest * min(num_agreeing, 3)
    return tenths / (3 * NUM_ANNOTATORS)


def score_tasks(rows: Iterable[Mapping[str, Any]]) -> list[TaskScore]:
    """Scores by task, in alphabetical order, from rows with `task`, `truth` and `answer`.

    The baseline is the answer that would score most on the same rows if it were always given; of
    equally good ones the first in alphabetical order is named. Rows of one task from several
    `source`s are scored by source as well.
    """
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    scores = []
    for task, members in sorted(by_task.items()):
        by_source: dict[str, list[Mapping[str, Any]]] = {}
        for row in members:
            by_source.setdefault(row.get("source", ""), []).append(row)
        parts = {source: _score(task, part) for source, part in sorted(by_source.items())}
        scores.append(_score(task, members, parts if len(parts) > 1 else {}))
    return scores


def _score(
    task: str, rows: Sequence[Mapping[str, Any]], by_source: dict[str, TaskScore] | None = None
) -> TaskScore:
    truths = [truth_of(row) for row in rows]
    credits: Counter[str] = Counter()
    for truth in truths:
        for answer, credit in _credits(truth).items():
            credits[answer] += credit  # type: ignore[assignment]  # shares, of vqa_accuracy
    best, credit = min(credits.items(), key=lambda item: (-round(item[1], 9), item[0]))
    return TaskScore(
        task,
        num_samples=len(rows),
        num_correct=sum(score_answer(r["answer"], t) for r, t in zip(rows, truths, strict=True)),
        majority_answer=best,
        num_majority=credit,
        metrics=tuple(sorted({truth.metric for truth in truths})),
        by_source=by_source or {},
    )


def _credits(truth: Truth) -> dict[str, float]:
    """Normalised answer -> what it scores."""
    if not truth.counts:
        return {normalise_answer(answer): 1 for answer in truth.answers}
    counts: Counter[str] = Counter()
    for answer, count in zip(truth.answers, truth.counts, strict=True):
        counts[normalise_answer(answer)] += count
    return {answer: vqa_accuracy(count) for answer, count in counts.items()}


def _option(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names.

    A letter alone that stands for an option is that one, even where another option's text is the
    letter. A letter before a text must stand before its own option's text.
    """
    answer = answer.strip()
    letter = _LETTER.fullmatch(answer)
    if letter and letter[1].upper() in LETTERS[: len(options)]:
        return letter[1].upper()
    texts = [normalise_answer(option) for option in options]
    if texts.count(normalise_answer(answer)) == 1:
        return LETTERS[texts.index(normalise_answer(answer))]
    if both := _LETTER_AND_TEXT.fullmatch(answer):
        number = LETTERS.index(both[1].upper())
        if number < len(texts) and texts[number] == normalise_answer(both[2]):
            return LETTERS[number]
    return None
