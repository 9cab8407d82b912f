"""The page of a grid: the ranking with its intervals, all numbers, curves of all seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvlm.ablate.cells import difference_of
from nvlm.ablate.grid_results import CellResult, Compared, Results
from nvlm.ablate.measure import is_lower_better, trained_parameters
from nvlm.ablate.show import (
    interval,
    not_told_apart,
    notes_of,
    number,
    p_value,
    short,
    title_of,
)
from nvlm.views.pages import write_page
from nvlm.views.report.chart import Chart, Line, make_chart
from nvlm.views.report.downsample import running_mean
from nvlm.views.report.page import NUM_COLOURS
from nvlm.views.report.run_record import Series

REPORT_FILE = "report.html"
_CURVES = (("Training loss", "loss", "per trained token"), ("Held-out loss", "validation/loss", ""))
_MARGIN = 0.04  # of the plot of means, on both sides
_LEAST_STEPS_TO_SMOOTH = 20


@dataclass(frozen=True)
class Bar:
    """A cell's mean on the plot of means; places in percent of its width."""

    at: str
    low: str | None  # the interval, as far as the plot goes
    width: str | None
    seeds: list[str]


@dataclass(frozen=True)
class Row:
    """A cell, as the page shows it."""

    name: str
    rank: str
    is_base: bool
    bar: Bar | None
    mean: str
    interval: str
    seeds: str
    difference: str
    difference_interval: str
    p_seeds: str
    p_questions: str
    alike: str
    trained_parameters: str
    tokens: str
    hours: str
    changes: list[tuple[str, str, str]]  # key, the base's value, the cell's


def write_grid_page(results: Results, folder: Path) -> Path:
    """Write `folder/report.html`."""
    places = _places(results)
    rows = [_row(result, results, places) for result in results.cells]
    others = [name for name in results.metrics if name != results.metric]
    return write_page(
        folder / REPORT_FILE,
        "nvlm.views",
        "ablation.html",
        title=f"Ablation {results.name}",
        metric=results.metric,
        direction="less is better" if is_lower_better(results.metric) else "more is better",
        num_seeds=len(results.grid.seeds),
        rows=rows,
        ticks=places.ticks if places else [],
        base_at=rows[results.cells.index(results.base)].bar,
        others=others,
        other_rows=[
            (title_of(r.cell, results.grid), [_mean_text(r, name) for name in others])
            for r in results.cells
        ],
        charts=_charts(results),
        failures=results.failures,
        notes=notes_of(results),
        num_colours=NUM_COLOURS,
    )


@dataclass(frozen=True)
class _Places:
    low: float
    high: float
    ticks: list[tuple[str, str]]  # place, label

    def at(self, value: float) -> float:
        """In percent of the width; what is outside lies on its edge."""
        return 100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def _places(results: Results) -> _Places | None:
    """The axis of the plot of means: as wide as all seeds and means; intervals may go beyond."""
    values: list[float] = []
    for result in results.cells:
        values += _by_seed(result, results.metric)
    if not values:
        return None
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    ends = [
        end
        for result in results.cells
        if (mean := result.means.get(results.metric)) and mean.interval
        for end in mean.interval
    ]
    # Intervals of two seeds may be ten times as wide as all that was measured.
    low = max(low - spread, min([low, *ends])) - _MARGIN * spread
    high = min(high + spread, max([high, *ends])) + _MARGIN * spread
    marks = np.linspace(low, high, 3)
    ticks = [(f"{50 * at:.0f}%", number(float(mark))) for at, mark in enumerate(marks)]
    return _Places(low, high, ticks)


def _by_seed(result: CellResult, metric: str) -> list[float]:
    found = [one.metrics.get(metric) for one in result.measured.values()]
    return [value for value in found if value is not None and np.isfinite(value)]


def _bar(result: CellResult, results: Results, places: _Places | None) -> Bar | None:
    mean = result.means.get(results.metric)
    if places is None or mean is None or not np.isfinite(mean.value):
        return None
    low = width = None
    if mean.interval is not None:
        start, end = map(places.at, mean.interval)
        low, width = f"{start:.2f}%", f"{end - start:.2f}%"
    seeds = [f"{places.at(value):.2f}%" for value in _by_seed(result, results.metric)]
    return Bar(f"{places.at(mean.value):.2f}%", low, width, seeds)


def _row(result: CellResult, results: Results, places: _Places | None) -> Row:
    mean = result.means.get(results.metric)
    compared: Compared | None = result.compared.get(results.metric)
    measured = result.measured.values()
    _, trained = trained_parameters(next(iter(result.cell.runs.values())).config)
    difference = compared.difference.mean if compared else None
    return Row(
        name=title_of(result.cell, results.grid),
        rank=str(result.rank or "–"),
        is_base=result.cell.is_base,
        bar=_bar(result, results, places),
        mean=number(mean.value) if mean else "–",
        interval=interval(mean.interval) if mean else "–",
        seeds=f"{len(result.measured)} of {len(result.cell.runs)}",
        difference=f"{difference.value:+.4g}" if difference else "–",
        difference_interval=interval(difference.interval, sign="+") if difference else "",
        p_seeds=p_value(compared.p_seeds_holm if compared else None),
        p_questions=p_value(compared.p_questions_holm if compared else None),
        alike=not_told_apart(result, results),
        trained_parameters=f"{trained:,}",
        tokens=f"{sum(one.tokens for one in measured):,}",
        hours=f"{result.hours:.3g}",
        changes=[
            (key, short(old), short(new))
            for key, (old, new) in difference_of(result.cell, results.base.cell).items()
        ],
    )


def _mean_text(result: CellResult, name: str) -> str:
    return number(result.means[name].value) if name in result.means else "–"


def _charts(results: Results) -> list[Chart]:
    """Curves of the best cells and of the base: each seed faint, and their mean."""
    shown = [result for result in results.cells if result.records][:NUM_COLOURS]
    if results.base not in shown and results.base.records:
        shown[-1] = results.base
    charts = []
    for title, key, note in _CURVES:
        lines: list[Line] = []
        for colour, result in enumerate(shown):
            series = [record.series(key).finite for record in result.records.values()]
            series = [_smooth(one) for one in series if len(one)]
            name = title_of(result.cell, results.grid)
            if len(series) > 1:
                lines += [Line(f"{name}, each seed", one, colour, "raw") for one in series]
            if series:
                lines.append(Line(name, _mean_series(series), colour))
        charts.append(make_chart(title, lines, note=note))
    return [chart for chart in charts if chart]


def _smooth(series: Series) -> Series:
    return running_mean(series) if len(series) > _LEAST_STEPS_TO_SMOOTH else series


def _mean_series(series: Sequence[Series]) -> Series:
    """Over the steps that all of them have."""
    common = series[0].steps
    for one in series[1:]:
        common = np.intersect1d(common, one.steps)
    values = [one.values[np.searchsorted(one.steps, common)] for one in series]
    return Series(common, np.mean(values, axis=0))
