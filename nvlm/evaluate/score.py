"""Exact-match accuracy per task, beside what always giving the commonest answer would reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskScore:
    """One task of one evaluation. Shares are between 0 and 1."""

    task: str
    num_samples: int
    num_correct: int
    majority_answer: str
    num_majority: int

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


def is_correct(answer: str, truth: str) -> bool:
    return normalise_answer(answer) == normalise_answer(truth)


def score_tasks(rows: Iterable[Mapping]) -> list[TaskScore]:
    """Scores by task, in alphabetical order, from rows with `task`, `truth` and `answer`.

    The baseline is the commonest normalised truth among the same rows; of equally common ones the
    first in alphabetical order is named.
    """
    by_task: dict[str, list[Mapping]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    scores = []
    for task, members in sorted(by_task.items()):
        truths = Counter(normalise_answer(row["truth"]) for row in members)
        commonest, count = min(truths.items(), key=lambda item: (-item[1], item[0]))
        num_correct = sum(is_correct(row["answer"], row["truth"]) for row in members)
        scores.append(TaskScore(task, len(members), num_correct, commonest, count))
    return scores
