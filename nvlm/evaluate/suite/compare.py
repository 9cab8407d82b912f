"""Two evaluations of the same questions: which is better, and is that more than chance?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvlm.errors import DataError
from nvlm.evaluate.suite.folder import (
    Row,
    benchmarks_in,
    read_about,
    read_predictions,
)
from nvlm.evaluate.suite.scores import Scored, benchmark_of, item_of, scored_answer
from nvlm.evaluate.suite.settings import differences
from nvlm.evaluate.suite.statistics import (
    bootstrap_interval,
    bootstrap_interval_of,
    mcnemar,
    sign_flips,
)
from nvlm.printing import listed


@dataclass(frozen=True)
class Flip:
    """A question that one evaluation answers better than the other."""

    key: str
    question: str
    truth: str  # JSON
    answers: tuple[str, str]
    scores: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """One benchmark in both evaluations; what is not answered in both is left out."""

    title: str
    metric: str
    num_pairs: int
    num_unpaired: int  # questions that were skipped in one of them
    numbers: tuple[float, float]  # of the first and the second, over the pairs
    interval: tuple[float, float] | None  # 95 %, of the difference; None: cannot be resampled
    p_value: float
    test: str  # that gave it
    better: tuple[list[Flip], list[Flip]]  # in the first, in the second
    is_same_checkpoint: bool

    @property
    def difference(self) -> float:
        """Second less first."""
        return self.numbers[1] - self.numbers[0]


def compare(first: Path, second: Path) -> tuple[list[Comparison], list[str]]:
    """Each benchmark that both folders have, and the names of those that only one has.

    Raises:
        DataError: a folder is no evaluation or not done, the two have no benchmark in common, or
            one was asked otherwise in the second; the message says what differs.
    """
    folders = [{path.name: path for path in benchmarks_in(folder)} for folder in (first, second)]
    common = [name for name in folders[0] if name in folders[1]]
    if not common:
        raise DataError(
            f"{first} has {listed(folders[0], 8)}, {second} has {listed(folders[1], 8)}: there is "
            "nothing to compare"
        )
    only = sorted(folders[0].keys() ^ folders[1].keys())
    return [_compare(folders[0][name], folders[1][name]) for name in common], only


def _compare(first: Path, second: Path) -> Comparison:
    abouts = [read_about(folder) for folder in (first, second)]
    _check_same(first, second, *map(_comparable, abouts))
    benchmark = benchmark_of(first, abouts[0])
    rows, asked_keys = [], []
    for folder in (first, second):
        answered, skipped = read_predictions(folder)
        rows.append({row["key"]: row for row in answered})
        asked_keys.append({row["key"] for row in (*answered, *skipped)})
    if odd := sorted(asked_keys[0] ^ asked_keys[1]):
        raise DataError(
            f"{first} and {second} were not asked the same: {len(odd):,} questions are in one "
            f"alone, such as {odd[0]}"
        )
    keys = [key for key in rows[0] if key in rows[1]]
    for key in keys:
        asked = [
            {"messages": row["messages"], "images": row["images"], "truth": row["truth"]}
            for row in (rows[0][key], rows[1][key])
        ]
        _check_same(first / key, second / key, *asked)
    if not keys:
        raise DataError(f"{first} and {second}: no question was answered in both")
    if any(rows[side][key]["score"] is None for side in (0, 1) for key in keys):
        raise DataError(
            f"{first}: the truths of this split are not published, so there is nothing to compare"
        )
    scored = [
        Scored(
            benchmark,
            [item_of(rows[side][key]) for key in keys],
            [scored_answer(rows[side][key], abouts[side]) for key in keys],
            [rows[side][key]["score"] for key in keys],
        )
        for side in (0, 1)
    ]
    differences_of_items = np.array(scored[1].scores) - np.array(scored[0].scores)
    p_value, test = _test(scored[0].scores, scored[1].scores)
    flips = [_flip(rows[0][key], rows[1][key]) for key in keys]
    return Comparison(
        title=benchmark.title,
        metric=benchmark.metric,
        num_pairs=len(keys),
        num_unpaired=len(rows[0].keys() ^ rows[1].keys()),
        numbers=(scored[0].number(), scored[1].number()),
        interval=_interval(scored[0], scored[1], differences_of_items),
        p_value=p_value,
        test=test,
        better=(
            [flip for flip in flips if flip.scores[0] > flip.scores[1]],
            [flip for flip in flips if flip.scores[0] < flip.scores[1]],
        ),
        is_same_checkpoint=abouts[0]["checkpoint_hash"] == abouts[1]["checkpoint_hash"],
    )


def _comparable(about: Mapping[str, Any]) -> dict[str, Any]:
    """The data are compared question by question: words, truths, and the bytes of pictures."""
    return {"benchmark": about["benchmark"], "settings": about["settings"]}


def _check_same(
    first: Path, second: Path, there: Mapping[str, Any], here: Mapping[str, Any]
) -> None:
    differing = differences(there, here)
    if differing:
        raise DataError(
            f"{first} and {second} were not asked the same: {'; '.join(differing)} (now: in the "
            "second)"
        )


def _interval(
    first: Scored, second: Scored, differences_of_items: np.ndarray
) -> tuple[float, float] | None:
    if first.benchmark.summarise is None:
        return bootstrap_interval(100 * differences_of_items)
    if not first.benchmark.can_resample:
        return None
    return bootstrap_interval_of(
        lambda drawn: second.number(drawn) - first.number(drawn), len(first.items)
    )


def _test(first: Sequence[float], second: Sequence[float]) -> tuple[float, str]:
    """(p value, name of the test) of the items' scores."""
    if {*first, *second} <= {0.0, 1.0}:
        only_first = sum(a > b for a, b in zip(first, second, strict=True))
        only_second = sum(a < b for a, b in zip(first, second, strict=True))
        return mcnemar(only_first, only_second), "McNemar, exact"
    return sign_flips(np.array(second) - np.array(first)), "sign flips"


def _flip(first: Row, second: Row) -> Flip:
    return Flip(
        key=first["key"],
        question=first["question"],
        truth=json.dumps(first["truth"], ensure_ascii=False),
        answers=(first["answer"], second["answer"]),
        scores=(first["score"], second["score"]),
    )
