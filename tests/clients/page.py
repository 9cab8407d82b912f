"""docs/compatibility.md, from the results of the last run of each client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from helpers.paths import REPOSITORY

from clients.client import Comparison

RESULTS = Path(__file__).with_name("results")
PAGE = REPOSITORY / "docs" / "compatibility.md"

HEADER = """\
# Programs that open exports

What `scripts/test --clients` found: it installs each program, from the package index unless a
commit is named, into an environment of its own, opens exports of small models with it, and compares
with Megatron-core's answers (or, where the row says so, with something else). Written by that
program; do not edit by hand. [serving.md](serving.md) says how each of them is used and what it
assumes.

"""
TABLE_HEAD = "| program | version | compared | found | on |\n|---|---|---|---|---|\n"


def keep(
    name: str, program: str, version: str, day: str, comparisons: Sequence[Comparison]
) -> None:
    """Write what a client gave, in the place of what it gave before."""
    RESULTS.mkdir(exist_ok=True)
    result = {
        "program": program,
        "version": version,
        "day": day,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    text = json.dumps(result, indent=2) + "\n"
    (RESULTS / f"{name.replace(' ', '-')}.json").write_text(text)


def kept() -> list[dict[str, Any]]:
    """By program and version, the newest first."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]

    def numbers(result: dict[str, Any]) -> list[int]:
        return [int(part) for part in result["version"].split(".") if part.isdigit()]

    results.sort(key=numbers, reverse=True)
    return sorted(results, key=lambda result: result["program"])


def text_of(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        first = f"{result['program']} | {result['version']}"
        for row in result["comparisons"]:
            found = row["found"] if row["is_equal"] else f"**differs**: {row['found']}"
            cells = [cell.replace("|", "\\|") for cell in (row["what"], found)]
            lines.append(f"| {first} | {' | '.join(cells)} | {result['day']} |\n")
    return HEADER + TABLE_HEAD + "".join(lines)


def write() -> None:
    PAGE.write_text(text_of(kept()))
