"""The commands of docs/evaluate.md about benchmarks as they stand; the page that lists them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY
from helpers.walkthrough import blocks_of, prepare, run_block

from nvlm.evaluate.benchmarks.table import BENCHMARKS

PAGE = REPOSITORY / "docs" / "evaluate.md"


def test_the_list_of_benchmarks_is_that_of_the_code():
    """After a change of an entry, `scripts/benchmark_table` writes it anew."""
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert runpy.run_path(str(REPOSITORY / "scripts" / "benchmark_table"))["render"]() == page
    assert all(f"| `{name}` |" in page for name in BENCHMARKS)


@pytest.mark.parallel
def test_every_command_runs(tmp_path: Path):
    environment = prepare(tmp_path)  # the page writes below runs/, here a folder of the test's
    printed: dict[str, str] = {}
    for language, text in blocks_of(PAGE):
        if language in ("bash", "python"):
            said = run_block(language, text, tmp_path, environment)
            printed[text.splitlines()[-1].strip()] = said
    texts = [text for language, text in blocks_of(PAGE) if language == "text"]
    for said, command in (
        (texts[0], "--max-new-tokens 4 --out runs/benchmarks/first"),
        (texts[1], "nvlm evaluate compare runs/benchmarks/first runs/benchmarks/second"),
    ):
        lines = [line.split() for line in printed[command].splitlines()]
        wanted = [line.split() for line in said.splitlines()]
        assert [line for line in lines if line in wanted] == wanted
    folder = tmp_path / "runs" / "benchmarks"
    first, second = (
        (folder / name / "realworldqa" / "predictions.jsonl").read_text()
        for name in ("first", "second")
    )
    # The export answers as the checkpoint that it was made of.
    assert first == second and len(first.splitlines()) == 8
    scores = json.loads((folder / "first" / "scores.json").read_text())
    assert scores["realworldqa"]["num_samples"] == 8
