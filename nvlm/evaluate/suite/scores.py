"""Scores from a folder's rows alone: no model, no data of the benchmark."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Benchmark, Item
from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.evaluate.suite.conversation import final_answer
from nvlm.evaluate.suite.folder import (
    PREDICTIONS_FILE,
    SCORES_FILE,
    SKIPPED_FILE,
    Row,
    benchmarks_in,
    finish,
    read_about,
    read_json,
    read_predictions,
)
from nvlm.evaluate.suite.statistics import bootstrap_error, bootstrap_error_of
from nvlm.files import write_text
from nvlm.printing import counted

SUBMISSION_FILE = "submission.json"


def item_fields(item: Item) -> dict[str, Any]:
    """What a row keeps of an item: all but its pictures."""
    return {
        "key": item.key,
        "group": item.group,
        "question": item.question,
        "options": list(item.options),
        "truth": dict(item.truth),
        "fields": dict(item.fields),
    }


def item_of(row: Mapping[str, Any]) -> Item:
    """The item of a row, without its pictures."""
    return Item(
        key=row["key"],
        question=row["question"],
        images=(),
        truth=row["truth"],
        options=row["options"],
        group=row["group"],
        fields=row["fields"],
    )


def scored_answer(row: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What is scored of a row's answer."""
    return final_answer(row["answer"], about["settings"]["chain_of_thought"])[0]


def benchmark_of(folder: Path, about: Mapping[str, Any]) -> Benchmark:
    """
    Raises:
        DataError: this version of nvlm has no such benchmark.
    """
    name = about.get("benchmark")
    if name not in BENCHMARKS:
        raise DataError(f"{folder}: is of the benchmark {name!r}, which this nvlm does not have")
    return BENCHMARKS[name]


def score_folder(folder: Path, num_missing: int = 0) -> dict[str, Any]:
    """Score the rows of `folder`, write `scores.json`, and return what it says.

    Each row gets its score, which is null where the split's truths are not published: then
    `submission.json` is written, as the benchmark's server takes it.

    Args:
        num_missing: questions that were scored before and have no row now.

    Raises:
        DataError: the folder has no whole answers.
    """
    about = read_about(folder)
    benchmark = benchmark_of(folder, about)
    rows, skipped = read_predictions(folder)
    items = [item_of(row) for row in rows]
    answers = [scored_answer(row, about) for row in rows]
    is_scored = about["settings"]["split"] not in benchmark.unscored_splits
    for row, item, answer in zip(rows, items, answers, strict=True):
        row["score"] = benchmark.score(item, answer) if is_scored else None
    finish(folder, [*rows, *skipped])
    if benchmark.submission is not None and rows:
        submission = benchmark.submission(items, answers)
        write_text(folder / SUBMISSION_FILE, json.dumps(submission) + "\n")
    scores = [row["score"] for row in rows]
    summary = {
        **_numbers(Scored(benchmark, items, answers, scores if is_scored else [])),
        "title": benchmark.title,
        "metric": benchmark.metric,
        "prompt_is": benchmark.prompt_is,
        "paper_score": _paper_score(benchmark, about),
        "num_samples": len(rows),
        "num_skipped": len(skipped),
        **({"num_missing": num_missing} if num_missing else {}),
        "skipped": dict(Counter(row["skipped"]["reason"] for row in skipped)),
        "num_cut_off": sum(row["finish_reason"] == "length" for row in rows),
        "num_without_final_answer": _num_unmarked(rows, about),
        **about,
    }
    write_text(folder / SCORES_FILE, json.dumps(summary, indent=2) + "\n")
    return summary


def score_all(folder: Path, allows_missing: bool = False) -> list[dict[str, Any]]:
    """`score_folder` for each benchmark in `folder`, and a summary of them in `scores.json`.

    Args:
        allows_missing: score what is there where rows are gone.

    Raises:
        DataError: there are none, one is not whole, or has fewer rows than it was scored with.
    """
    missing = {path: _num_missing(path) for path in benchmarks_in(folder)}
    for path, number in missing.items():
        if number and not allows_missing:
            raise DataError(
                f"{path}: {counted(number, 'question')} of those that it was scored with are not "
                f"in {PREDICTIONS_FILE} or {SKIPPED_FILE}: give the command of the evaluation "
                "again, or --allow-missing to score what is there"
            )
    summaries = [score_folder(path, number) for path, number in missing.items()]
    write_summary(folder, summaries)
    return summaries


def _num_missing(folder: Path) -> int:
    if not (folder / SCORES_FILE).is_file():
        return 0
    before = read_json(folder / SCORES_FILE)
    numbers = (before.get(name, 0) for name in ("num_samples", "num_skipped", "num_missing"))
    expected = sum(number for number in numbers if isinstance(number, int))
    return max(0, expected - sum(map(len, read_predictions(folder))))


def write_summary(folder: Path, summaries: Sequence[Mapping[str, Any]]) -> None:
    """`folder/scores.json`: the numbers of each benchmark, by name."""
    kept = ("title", "metric", "score", "standard_error", "num_samples", "num_skipped",
            "paper_score", "settings", "checkpoint", "checkpoint_hash")  # fmt: skip
    parts = {some["benchmark"]: {key: some[key] for key in kept} for some in summaries}
    write_text(folder / SCORES_FILE, json.dumps(parts, indent=2) + "\n")


@dataclass(frozen=True)
class Scored:
    """Items, what was answered to each, and what that scored."""

    benchmark: Benchmark
    items: Sequence[Item]
    answers: Sequence[str]
    scores: Sequence[float]  # 0 to 1

    def number(self, drawn: Sequence[int] | None = None) -> float:
        """The number that papers print; of the items at the positions `drawn`, or of all."""
        some = self
        if drawn is not None:
            some = Scored(
                self.benchmark,
                [self.items[at] for at in drawn],
                [self.answers[at] for at in drawn],
                [self.scores[at] for at in drawn],
            )
        if some.benchmark.summarise is None:
            return 100 * float(np.mean(some.scores))
        return some.benchmark.summarise(some.items, some.answers, some.scores).score

    def standard_error(self) -> float | None:
        """In the scale of `number`; None where it cannot be resampled."""
        if self.benchmark.summarise is None:
            return 100 * bootstrap_error(np.array(self.scores))
        if not self.benchmark.can_resample:
            return None
        return bootstrap_error_of(self.number, len(self.items))

    def parts(self) -> dict[str, float]:
        if self.benchmark.summarise is None:
            return {}
        return dict(self.benchmark.summarise(self.items, self.answers, self.scores).parts)


def _numbers(scored: Scored) -> dict[str, Any]:
    if not scored.scores:
        return {"score": None, "standard_error": None, "parts": {}, "groups": {}}
    return {
        "score": scored.number(),
        "standard_error": scored.standard_error(),
        "parts": scored.parts(),
        "groups": _groups(scored.items, scored.scores),
    }


def _groups(items: Sequence[Item], scores: Sequence[float]) -> dict[str, Any]:
    """100 x the mean score of the items of each group, in alphabetical order."""
    by_group: dict[str, list[float]] = {}
    for item, score in zip(items, scores, strict=True):
        if item.group:
            by_group.setdefault(item.group, []).append(score)
    return {
        group: {"score": 100 * float(np.mean(some)), "num_samples": len(some)}
        for group, some in sorted(by_group.items())
    }


def _paper_score(benchmark: Benchmark, about: Mapping[str, Any]) -> float | None:
    """The paper's number where the same split is asked."""
    same = about["settings"]["split"] == (benchmark.paper_split or benchmark.splits[0])
    return benchmark.paper_score if same else None


def _num_unmarked(rows: Sequence[Row], about: Mapping[str, Any]) -> int:
    reasons = about["settings"]["chain_of_thought"]
    return sum(not final_answer(row["answer"], reasons)[1] for row in rows)
