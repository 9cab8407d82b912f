"""MMBench's circular evaluation: a question counts where it is right in every order of its options.

Liu et al., "MMBench: Is Your Multi-modal Model an All-around Player?", ECCV 2024, section 4.3. The
published files hold each question once for every rotation of its options, as rows of their own:
row i + 1,000,000 k is question i, rotated k times.
"""

from __future__ import annotations

from collections.abc import Iterable

ROTATION = 1_000_000


def question_of(index: int) -> int:
    """The index of the question that a row asks, in any rotation."""
    return index % ROTATION


def circular_hits(rows: Iterable[tuple[int, bool]]) -> dict[int, bool]:
    """Whether each question was right in all of its rows that were asked.

    Args:
        rows: (index of the row, whether its answer is right).
    """
    hits: dict[int, bool] = {}
    for index, is_right in rows:
        question = question_of(index)
        hits[question] = hits.get(question, True) and is_right
    return hits
