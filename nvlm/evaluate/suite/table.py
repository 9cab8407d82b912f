"""Benchmarks and scores as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.evaluate.suite.files import files_found, list_files
from nvlm.printing import new_console, printable, say

ABSENT = "–"


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
        if some["score"] is None:
            say(f"{some['title']}: the split's truths are not published; nothing was scored")


def number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"
