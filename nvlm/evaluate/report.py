"""An evaluation as a user sees it: what will be asked and what not, then the scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.evaluate.questions import HeldOut
from nvlm.evaluate.score import TaskScore
from nvlm.printing import new_console, printable, say

_NUM_NAMED = 10
_MAX_ANSWER_SHOWN = 24


def print_questions(config: RunConfig, found: HeldOut) -> None:
    """What is asked, from which source, and what is not."""
    say(f"asking questions of {Path(config.data.root) / config.data.split}")
    table = Table(box=None)
    table.add_column("source", overflow="fold")
    for name in ("samples", "asked"):
        table.add_column(name, justify="right")
    table.add_column("left out", overflow="fold")
    for source, counts in found.counts.items():
        reasons = ", ".join(f"{name} {n:,}" for name, n in sorted(counts.left_out.items()))
        table.add_row(
            Text(printable(source)),
            f"{counts.num_samples:,}",
            f"{counts.num_chosen:,}",
            reasons,
        )
    new_console().print(table)
    for source, counts in found.counts.items():
        if counts.num_without_task:
            say(
                f"questions of {source} without a task: {counts.num_without_task:,}; they count as "
                f"task {source}"
            )
    _name(found.left_out)


def print_left_out(left_out: Sequence[SkippedSample]) -> None:
    """What could not be read when its turn came."""
    if left_out:
        say(f"{len(left_out):,} more left out, whose images cannot be decoded")
        _name(left_out)


def print_scores(scores: Sequence[TaskScore]) -> None:
    """A table of the tasks; a task of several sources has a line for each."""
    table = Table(box=None)
    table.add_column("task", overflow="fold")
    for name in ("samples", "right", "share", "majority"):
        table.add_column(name, justify="right")
    table.add_column("with the answer", overflow="fold")
    table.add_column("counted by", overflow="fold")
    for score in scores:
        _add(table, score.task, score)
        for source, part in score.by_source.items():
            _add(table, f"  {source}", part)
    new_console().print(table)


def print_repairs(rows: Sequence[Mapping[str, Any]]) -> None:
    """What was changed about samples to use them (docs/data_rules.md)."""
    repairs: Counter[str] = Counter()
    for row in rows:
        repairs.update(row.get("repaired", {}))
    if repairs:
        said = ", ".join(f"{what} {number:,}" for what, number in sorted(repairs.items()))
        say(f"repaired as in training: {said}")


def _name(left_out: Sequence[SkippedSample]) -> None:
    for sample in left_out[:_NUM_NAMED]:
        say(
            f"left out {sample.source} {sample.shard} {sample.key or '(shard)'}: {sample.reason}: "
            f"{sample.detail}"
        )
    if len(left_out) > _NUM_NAMED:
        say(f"... and {len(left_out) - _NUM_NAMED:,} more; `nvlm data index CONFIG DIR` names all")


def _add(table: Table, name: str, score: TaskScore) -> None:
    answer = printable(score.majority_answer)
    if len(answer) > _MAX_ANSWER_SHOWN:
        answer = f"{answer[: _MAX_ANSWER_SHOWN - 1]}…"
    table.add_row(
        Text(printable(name)),
        f"{score.num_samples:,}",
        f"{score.num_correct:,g}" if score.num_correct < 1e5 else f"{score.num_correct:,.0f}",
        f"{score.accuracy:.1%}",
        f"{score.majority:.1%}",
        Text(answer),
        ", ".join(score.metrics),
    )
