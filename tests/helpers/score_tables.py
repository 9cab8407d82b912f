"""The tables of tests/evaluate/scores: what implementations of others give to invented answers."""

from __future__ import annotations

import json
from typing import Any

from helpers.paths import REPOSITORY

MIN_ROWS = 200


def read_score_table(name: str) -> list[dict[str, Any]]:
    """Rows with `answer`, `scores` by implementation, and what the scorer gets; 200 at least."""
    path = REPOSITORY / "tests/evaluate/scores" / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= MIN_ROWS
    return rows
