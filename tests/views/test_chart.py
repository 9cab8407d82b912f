"""Curves of the report: few points that hide nothing, and axes that fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nvlm.train.events import Event
from nvlm.views.report.chart import SPAN, Line, make_chart
from nvlm.views.report.downsample import downsample, running_mean
from nvlm.views.report.run_record import RunRecord, Series
from nvlm.views.report.times import time_parts


def series(values, first: int = 1) -> Series:
    values = np.asarray(values, np.float64)
    return Series(np.arange(first, first + len(values)), values)


@pytest.mark.parametrize("count", [1, 2, 959, 961, 5_000, 200_001])
def test_downsampling_keeps_extremes(count: int):
    columns = 480
    values = np.random.default_rng(count).normal(size=count)
    if count > 3000:
        values[1234], values[2345] = 1e6, -1e6  # one step of many
    full = series(values)
    thin = downsample(full, columns, 1, count)
    assert len(thin) <= 2 * columns + 2
    assert (thin.steps[0], thin.steps[-1]) == (1, count)
    assert (np.diff(thin.steps) > 0).all()
    assert (thin.values == values[thin.steps - 1]).all()  # exact, at their own steps
    column, thin_column = ((s.steps - 1) * columns // count for s in (full, thin))
    for number in np.unique(column):
        ours, theirs = thin.values[thin_column == number], values[column == number]
        assert (ours.min(), ours.max()) == (theirs.min(), theirs.max())


def test_running_mean():
    assert running_mean(series([3.0] * 500)).values == pytest.approx([3.0] * 500)
    values = np.random.default_rng(0).normal(size=5000) + 7
    assert running_mean(series(values)).values[-1] == pytest.approx(7, abs=0.3)


def drawn_heights(values, **options) -> list[float]:
    chart = make_chart("x", [Line("y", series(values), 0)], **options)
    assert chart is not None
    for line in chart.lines:
        assert line.values == pytest.approx(list(values), rel=1e-5)
    return [float(pair.split()[1]) for pair in chart.lines[0].points.removeprefix("M").split("L")]


def test_axes():
    assert drawn_heights([0.0, 5.0, 10.0]) == [SPAN, SPAN / 2, 0]
    assert drawn_heights([2.0, 3.0], from_zero=True) == [pytest.approx(SPAN / 3, abs=0.1), 0.0]
    equal = drawn_heights([7.0, 7.0, 7.0])
    assert len(set(equal)) == 1 and 0 < equal[0] < SPAN
    # Logarithmic: orders of magnitude, or one step far above the others.
    assert drawn_heights([1.0, 10.0, 100.0]) == [SPAN, SPAN / 2, 0]
    ordinary = drawn_heights([2.0, 2.5] * 200 + [90.0])
    assert min(ordinary[:-1]) < 0.95 * SPAN  # and not as good as on the floor
    for values in ([-1.0, 1e6], [0.0, 1e6], [1e-30, 1e30], [5e-324, 1.0], [1.0, math.nan, 2.0]):
        chart = make_chart("x", [Line("y", series(values), 0)])
        assert chart is not None and len(chart.y_ticks) >= 2
        assert all(0 <= float(tick.at[:-1]) <= 100 for tick in chart.y_ticks)
    assert make_chart("x", [Line("y", series([math.inf, math.nan]), 0)]) is None


def test_words_for_those_who_do_not_see_it():
    chart = make_chart("Loss", [Line("training", series([3.0, 1.0, 2.0]), 0)])
    assert chart is not None
    assert chart.about == "training: 3 at step 1, 2 at step 3, lowest 1 at step 2"


def test_where_the_time_went(tmp_path):
    # Steps of 10 s; 5 s between them, of which 4 s validation after step 2; a restart after step 3.
    columns = {
        "seconds": [10.0] * 5,
        "data_seconds": [1.0] * 5,
        "encode_seconds": [2.0] * 5,
        "forward_backward_seconds": [6.0] * 5,
        "optimizer_seconds": [2.0] * 5,
        "time": [110.0, 120.0, 135.0, 245.0, 255.0],
    }
    saved = Event(124.0, 2, "save", "", {"seconds": 7.0, "held": 0.25})
    run = RunRecord(
        folder=tmp_path,
        name="x",
        config={},
        steps={key: series(values) for key, values in columns.items()},
        between={"validation/seconds": Series(np.array([2]), np.array([4.0]))},
        skipped=[],
        generations={},
        num_questions=0,
        events=[Event(100.0, 0, "start", ""), Event(200.0, 3, "resume", ""), saved],
        earlier_settings=[],
    )
    parts = {part.name: part.seconds for part in time_parts(run)}
    assert parts == pytest.approx(
        {
            "data": 5.0,
            "encode": 10.0,
            "forward and backward": 20.0,
            "optimizer": 10.0,
            "rest of the step": 5.0,
            "validation": 4.0,
            "checkpoints": 0.25,
            "between steps": 0.75,
            "not training": 100.0,
        }
    )
    assert sum(part.share for part in time_parts(run)) == pytest.approx(1.0)
