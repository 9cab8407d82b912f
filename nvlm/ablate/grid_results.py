"""What a grid found: each cell's means and paired differences to the base, ranked.

`results.json` holds it; the table and the page show it. Only finished runs count, each once: all is
read anew from their folders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nvlm.ablate.cells import Cell, Run, difference_of
from nvlm.ablate.existing import state_of
from nvlm.ablate.grid_file import Grid
from nvlm.ablate.measure import Measured, is_lower_better, measure, trained_parameters
from nvlm.ablate.run_tasks import Failure
from nvlm.ablate.scale_cells import ScaledCells, scale_cells
from nvlm.ablate.significance import Mean, PairedTest, holm, mean_of, paired_questions, paired_t
from nvlm.files import write_text
from nvlm.views.report.run_record import RunRecord

RESULTS_FILE = "results.json"
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Compared:
    """A number of a cell beside the base's, over the seeds that both have.

    p values are two-sided; `..._holm` are those among all cells together. None: no test.
    """

    difference: PairedTest
    num_questions: int
    test: str  # of questions
    p_questions: float | None
    p_seeds_holm: float | None = None
    p_questions_holm: float | None = None

    @property
    def is_told_apart(self) -> bool:
        """Whether every test that there is says so; none, and nothing is."""
        found = [p for p in (self.p_seeds_holm, self.p_questions_holm) if p is not None]
        return bool(found) and max(found) < SIGNIFICANCE


@dataclass
class CellResult:
    """A cell with its finished runs; `rank` is None where it has none."""

    cell: Cell
    measured: dict[int, Measured]
    records: dict[int, RunRecord]
    means: dict[str, Mean] = field(default_factory=dict)
    compared: dict[str, Compared] = field(default_factory=dict)
    to_first: Compared | None = None  # of the ranking's number, beside the first cell
    rank: int | None = None

    @property
    def hours(self) -> float:
        return sum(one.hours for one in self.measured.values())


@dataclass
class Results:
    """Of a grid, in the order of the ranking; cells without a number are last."""

    grid: Grid
    name: str
    cells: list[CellResult]
    shared: dict[str, float]  # runs of earlier stages -> hours
    failures: list[Failure]
    scaling: ScaledCells | None = None

    @property
    def metric(self) -> str:
        return self.grid.ranked_by

    @property
    def metrics(self) -> list[str]:
        """All that some cell has, the ranking's first."""
        found = {name: None for result in self.cells for name in result.means}
        return sorted(found, key=lambda name: (name != self.metric, name))

    @property
    def base(self) -> CellResult:
        return next(result for result in self.cells if result.cell.is_base)


def find_results(
    grid: Grid, name: str, cells: Sequence[Cell], failures: Sequence[Failure] = ()
) -> Results:
    """Read what is finished, and compare it.

    Raises:
        DataError: files of answers are damaged.
    """
    results = [_read(grid, cell) for cell in cells]
    base = results[0]
    metrics = dict.fromkeys(metric for result in results for metric in result.means)
    for metric in metrics:
        _compare(metric, base, results[1:])
    ranked = _ranked(results, grid.ranked_by)
    found = Results(grid, name, ranked, _shared_hours(cells, grid), list(failures))
    if grid.scaling is not None:
        found.scaling = scale_cells(grid.scaling, [(r.cell, r.measured) for r in results])
    return found


def _read(grid: Grid, cell: Cell) -> CellResult:
    result = CellResult(cell, {}, {})
    for seed, run in cell.runs.items():
        measured, record = measure(run, grid.evaluate, grid.processes)
        if record is not None:
            result.records[seed] = record
        if measured is not None:
            result.measured[seed] = measured
    names = dict.fromkeys(name for one in result.measured.values() for name in one.metrics)
    for name in names:
        values = [one.metrics[name] for one in result.measured.values() if name in one.metrics]
        result.means[name] = mean_of(values)
    return result


def _compare(metric: str, base: CellResult, others: Sequence[CellResult]) -> None:
    found = {}
    for at, other in enumerate(others):
        compared = _compared(metric, base, other)
        if compared is not None:
            found[at] = compared
    seeds = holm([one.difference.p_value for one in found.values()])
    questions = holm([one.p_questions for one in found.values()])
    for (at, one), p_seeds, p_questions in zip(found.items(), seeds, questions, strict=True):
        others[at].compared[metric] = _with_holm(one, p_seeds, p_questions)


def _with_holm(one: Compared, p_seeds: float | None, p_questions: float | None) -> Compared:
    return Compared(
        one.difference, one.num_questions, one.test, one.p_questions, p_seeds, p_questions
    )


def _compared(metric: str, base: CellResult, other: CellResult) -> Compared | None:
    seeds = [
        seed
        for seed in base.measured
        if seed in other.measured
        and metric in base.measured[seed].metrics
        and metric in other.measured[seed].metrics
    ]
    if not seeds:
        return None
    theirs, ours = ([r.measured[seed] for seed in seeds] for r in (base, other))
    differences = [b.metrics[metric] - a.metrics[metric] for a, b in zip(theirs, ours)]
    p_questions, num, test = None, 0, ""
    if all(metric in one.questions for one in (*theirs, *ours)):
        p_questions, num, test = paired_questions(
            [one.questions[metric] for one in theirs], [one.questions[metric] for one in ours]
        )
    return Compared(paired_t(differences), num, test, p_questions)


def _ranked(results: Sequence[CellResult], metric: str) -> list[CellResult]:
    """By the mean of `metric`, and each but the first compared with the first."""
    sign = 1 if is_lower_better(metric) else -1
    with_it = [r for r in results if metric in r.means and math.isfinite(r.means[metric].value)]
    with_it.sort(key=lambda r: sign * r.means[metric].value)
    for rank, result in enumerate(with_it, start=1):
        result.rank = rank
    found = [(r, c) for r in with_it[1:] if (c := _compared(metric, with_it[0], r)) is not None]
    seeds = holm([one.difference.p_value for _, one in found])
    questions = holm([one.p_questions for _, one in found])
    for (result, one), p_seeds, p_questions in zip(found, seeds, questions, strict=True):
        result.to_first = _with_holm(one, p_seeds, p_questions)
    return [*with_it, *(r for r in results if r.rank is None)]


def _shared_hours(cells: Sequence[Cell], grid: Grid) -> dict[str, float]:
    """Earlier stages that are done, each once, whichever cells begin from it."""
    runs: dict[Path, Run] = {}
    for cell in cells:
        for last in cell.runs.values():
            runs |= {run.folder: run for run in last.chain[:-1]}
    found = {}
    for folder, run in runs.items():
        if state_of(run).is_done:
            measured, _ = measure(run, grid.evaluate, grid.processes)
            found[folder.name] = measured.hours if measured else 0.0
    return found


def write_results(results: Results, folder: Path) -> Path:
    """Write `results.json`; numbers that the same runs give again are the same text."""
    path = folder / RESULTS_FILE
    write_text(path, json.dumps(as_json(results), indent=2, allow_nan=False) + "\n")
    return path


def as_json(results: Results) -> dict[str, Any]:
    """All that was found; only `hours` would be otherwise if the same were run again."""
    base = results.base.cell
    return {
        "grid": results.name,
        "nvlm": version("nvlm"),
        "rank_by": results.metric,
        "lower_is_better": is_lower_better(results.metric),
        "seeds": list(results.grid.seeds),
        "confidence": 0.95,
        "p_values": "two-sided; holm: corrected for all cells together (Holm 1979)",
        "cells": [_cell_as_json(result, base) for result in results.cells],
        "earlier_stages": {name: {"hours": hours} for name, hours in results.shared.items()},
        "scaling": results.scaling and results.scaling.as_json(),
        "failures": [
            {"what": failure.task.name, "error": failure.error, "log": str(failure.task.log)}
            for failure in results.failures
        ],
    }


def _cell_as_json(result: CellResult, base: Cell) -> dict[str, Any]:
    config = next(iter(result.cell.runs.values())).config
    total, trained = trained_parameters(config)
    measured = result.measured
    return {
        "name": result.cell.name,
        "rank": result.rank,
        "difference": difference_of(result.cell, base),
        "started_from": {
            seed: [run.folder.name for run in last.chain[:-1]]
            for seed, last in result.cell.runs.items()
        },
        "runs": {seed: str(run.folder) for seed, run in result.cell.runs.items()},
        "finished_seeds": list(measured),
        "metrics": {name: _metric_as_json(result, name) for name in sorted(result.means)},
        "to_first": result.to_first and _compared_as_json(result.to_first),
        "cost": {
            "parameters": total,
            "trained_parameters": trained,
            "tokens": sum(one.tokens for one in measured.values()),
            "trained_tokens": sum(one.trained_tokens for one in measured.values()),
            "hours": result.hours,
        },
    }


def _metric_as_json(result: CellResult, name: str) -> dict[str, Any]:
    mean = result.means[name]
    compared = result.compared.get(name)
    return {
        "mean": _number(mean.value),
        "interval": mean.interval,
        "by_seed": {
            seed: _number(one.metrics[name])
            for seed, one in result.measured.items()
            if name in one.metrics
        },
        "to_base": compared and _compared_as_json(compared),
    }


def _compared_as_json(one: Compared) -> dict[str, Any]:
    values = asdict(one)
    test = values.pop("difference")
    return {
        "difference": _number(test["mean"]["value"]),
        "interval": test["mean"]["interval"],
        "num_seeds": test["mean"]["num"],
        "p_seeds": test["p_value"],
        **values,
        "is_told_apart": one.is_told_apart,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
