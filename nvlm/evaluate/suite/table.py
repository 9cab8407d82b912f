"""Benchmarks and scores as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.evaluate.suite.compare import Comparison
from nvlm.evaluate.suite.files import files_found, list_files
from nvlm.printing import new_console, printable, say

ABSENT = "–"
_MAX_TEXT = 200


def print_benchmarks(data: Path | None) -> None:
    """All benchmarks; of each the files that it wants, and which of them `data` has."""
    for benchmark in BENCHMARKS.values():
        paper = f", {benchmark.paper_score:g} in the paper" if benchmark.paper_score else ""
        say(f"{benchmark.name}: {benchmark.title}, {benchmark.metric}{paper}")
        say(f"  splits {', '.join(benchmark.splits)}; the prompt is {benchmark.prompt_is}")
        if data is None:
            say(f"  files {', '.join(benchmark.files)}")
            say(f"  from {benchmark.source}")
        else:
            say(f"  files in {data / benchmark.name}: {files_found(benchmark, data)}")
            say(f"  {list_files(benchmark, data)}")


def print_scores(summaries: Sequence[Mapping[str, Any]]) -> None:
    """A line for each benchmark; the paper's number beside it is that of NVLM-D 1.0 72B."""
    table = Table(box=None)
    table.add_column("benchmark", overflow="fold")
    for name in ("split", "questions", "skipped", "score", "± s.e.", "paper"):
        table.add_column(name, justify="right")
    table.add_column("metric", overflow="fold")
    for some in summaries:
        table.add_row(
            Text(printable(some["title"])),
            some["settings"]["split"],
            f"{some['num_samples']:,}",
            f"{some['num_skipped']:,}",
            number(some["score"]),
            number(some["standard_error"]),
            number(some["paper_score"]),
            Text(printable(some["metric"])),
        )
    new_console().print(table)
    for some in summaries:
        if some["num_cut_off"]:
            say(
                f"{some['title']}: {some['num_cut_off']:,} answers ended at "
                f"--max-new-tokens {some['settings']['max_new_tokens']}"
            )
        if some["num_without_final_answer"]:
            say(
                f"{some['title']}: {some['num_without_final_answer']:,} answers without `Answer:`; "
                "the whole text was scored"
            )
        if some["score"] is None and some["num_samples"]:
            say(f"{some['title']}: the split's truths are not published; nothing was scored")


def print_comparison(
    comparisons: Sequence[Comparison], only_in_one: Sequence[str], num_examples: int
) -> None:
    """The numbers of each benchmark side by side, then questions of which one is right alone."""
    table = Table(box=None)
    table.add_column("benchmark", overflow="fold")
    for name in ("pairs", "A", "B", "B − A", "95 % interval", "p"):
        table.add_column(name, justify="right")
    table.add_column("test", overflow="fold")
    for some in comparisons:
        low_high = some.interval
        table.add_row(
            Text(printable(some.title)),
            f"{some.num_pairs:,}",
            *(number(value) for value in some.numbers),
            f"{some.difference:+.2f}",
            ABSENT if low_high is None else f"{low_high[0]:+.2f} to {low_high[1]:+.2f}",
            f"{some.p_value:.4f}" if some.p_value >= 0.0001 else "< 0.0001",
            Text(some.test),
        )
    new_console().print(table)
    if only_in_one:
        say(f"in one of the two alone, not compared: {', '.join(only_in_one)}")
    if any(some.is_same_checkpoint for some in comparisons):
        say("both are answers of the same checkpoint")
    for some in comparisons:
        if some.num_unpaired:
            say(f"{some.title}: {some.num_unpaired:,} questions are answered in one alone")
        for side, flips in zip("AB", some.better, strict=True):
            say(f"{some.title}: {len(flips):,} answers are better in {side}")
            for flip in flips[:num_examples]:
                say(f"  {flip.key}: {_cut(flip.question)}; truth {_cut(flip.truth)}")
                say(f"    A: {_cut(flip.answers[0])}")
                say(f"    B: {_cut(flip.answers[1])}")


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"
