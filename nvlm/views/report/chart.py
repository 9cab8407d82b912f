"""A chart of the page: where its lines, grid and labels stand, and what pointing at it shows.

The plot stretches with the page, so points are shares of it: x and y from 0 to `SPAN`. Labels are
text beside it, which keeps its size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nvlm.views.report.downsample import downsample, running_mean
from nvlm.views.report.run_record import Series

SPAN = 1000
_COLUMNS = 480
_SMALL_COLUMNS = 160
_NUM_LINES = 5
# The axis is logarithmic where the highest number is so many times the lowest, or where few steps
# are so far above all others that these would lie on the floor.
_WIDE, _SPIKE = 50.0, 4.0
_MAX_RATIO = 1e12  # what is still less lies on the floor
_MAX_DOTS = 60

Kind = Literal["line", "raw", "dots"]


@dataclass(frozen=True)
class Line:
    """What to draw of a run: `colour` is the number of a run or a part."""

    name: str
    series: Series
    colour: int
    kind: Kind = "line"


@dataclass(frozen=True)
class Tick:
    """A label of an axis and its place, in percent of the plot from its top or its left."""

    at: str
    label: str


@dataclass(frozen=True)
class Drawn:
    """A line as the template draws it."""

    name: str
    colour: int
    kind: Kind
    points: str  # of a path
    steps: list[int]  # what pointing shows
    values: list[float]


@dataclass(frozen=True)
class Chart:
    title: str
    about: str  # for those who do not see it
    note: str
    first: int  # step
    last: int
    lines: list[Drawn]
    y_ticks: list[Tick]
    x_ticks: list[Tick]
    marks: list[Tick] = field(default_factory=list)  # events
    is_small: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    is_log: bool

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """0 at the top, 1 at the bottom."""
        low, high = self.low, self.high
        if self.is_log:
            values = np.log10(np.maximum(values, low))
            low, high = math.log10(low), math.log10(high)
        return (high - values) / (high - low)


def make_chart(
    title: str,
    lines: Sequence[Line],
    *,
    note: str = "",
    from_zero: bool = False,
    may_be_log: bool = True,
    marks: Sequence[tuple[int, str]] = (),
    is_small: bool = False,
    span: tuple[int, int] | None = None,
) -> Chart | None:
    """The chart of `lines`; None where none of them has a finite number.

    Args:
        from_zero: the axis begins at 0.
        may_be_log: it is logarithmic where the numbers differ by orders of magnitude.
        marks: (step, text) of what to point out.
        span: first and last step of the plot; those of the lines where not given.
    """
    lines = [
        Line(line.name, line.series.finite, line.colour, line.kind)
        for line in lines
        if len(line.series.finite)
    ]
    if not lines:
        return None
    first, last = span or span_of([line.series for line in lines])
    columns = _SMALL_COLUMNS if is_small else _COLUMNS
    thinned = [downsample(line.series, columns, first, last) for line in lines]
    axis = _axis([line.series.values for line in lines], from_zero, may_be_log)
    drawn = [
        _draw(line, series, axis, first, last) for line, series in zip(lines, thinned, strict=True)
    ]
    width = max(last - first, 1)
    return Chart(
        title=title,
        about="; ".join(describe(line) for line in lines if line.kind != "raw") or title,
        note=f"{note}{', ' if note else ''}logarithmic" if axis.is_log else note,
        first=first,
        last=last,
        lines=drawn,
        y_ticks=_y_ticks(axis),
        x_ticks=_x_ticks(first, last),
        marks=[
            Tick(_percent((step - first) / width), text)
            for step, text in marks
            if first <= step <= last
        ],
        is_small=is_small,
    )


def span_of(series: Sequence[Series]) -> tuple[int, int]:
    """The first and the last step of all, which have numbers."""
    return min(int(s.steps[0]) for s in series), max(int(s.steps[-1]) for s in series)


def with_mean(name: str, series: Series, colour: int) -> list[Line]:
    """A curve that jumps from step to step: itself, faint, and the running mean of that name."""
    finite = series.finite
    if len(finite) < 3:
        return [Line(name, finite, colour)]
    return [
        Line("each step", finite, colour, "raw"),
        Line(name, running_mean(finite), colour),
    ]


def describe(line: Line) -> str:
    """A curve in words."""
    steps, values = line.series.steps, line.series.values
    text = f"{line.name}: {values[0]:.4g} at step {steps[0]:,}"
    if len(steps) > 1:
        low = int(values.argmin())
        text += f", {values[-1]:.4g} at step {steps[-1]:,}, lowest {values[low]:.4g} at step "
        text += f"{steps[low]:,}"
    return text


def _draw(line: Line, series: Series, axis: _Axis, first: int, last: int) -> Drawn:
    x = (series.steps - first) / max(last - first, 1) * SPAN
    y = axis.place(series.values) * SPAN
    pairs = [f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist())]
    kind = "line" if line.kind == "dots" and len(pairs) > _MAX_DOTS else line.kind
    if kind == "dots" or len(pairs) == 1:
        points = "".join(f"M{pair}h0" for pair in pairs)
    else:
        points = "M" + "L".join(pairs)
    values = [float(f"{value:.6g}") for value in series.values.tolist()]
    return Drawn(line.name, line.colour, kind, points, series.steps.tolist(), values)


def _axis(values: Sequence[NDArray[np.float64]], from_zero: bool, may_be_log: bool) -> _Axis:
    low = min(float(some.min()) for some in values)
    high = max(float(some.max()) for some in values)
    if may_be_log and low > 0:
        usual = max(float(np.quantile(some, 0.99)) for some in values)
        if high / low > _WIDE or high / usual > _SPIKE:
            low = max(low, high / _MAX_RATIO)
            return _Axis(_decimal_below(low), -_decimal_below(-high), is_log=True)
    if from_zero and low >= 0:
        low = 0.0
    if high - low <= 1e-9 * abs(high):  # what a running mean of equal numbers differs by
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread * (not from_zero or low > 0), high + spread
    spacing = _spacing(high - low)
    return _Axis(math.floor(low / spacing) * spacing, math.ceil(high / spacing) * spacing, False)


def _decimal_below(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten towards minus infinity."""
    power = 10.0 ** math.floor(math.log10(abs(value)))
    steps = [power * factor for factor in (1, 2, 5, 10)]
    if value > 0:
        return max(step for step in steps if step <= value * (1 + 1e-9))
    return -min(step for step in steps if step >= -value * (1 - 1e-9))


def _spacing(width: float) -> float:
    """1, 2 or 5 times a power of ten, so that the axis has up to `_NUM_LINES` parts."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(
        power * factor for factor in (0.2, 0.5, 1, 2, 5) if width / (power * factor) <= _NUM_LINES
    )


def _y_ticks(axis: _Axis) -> list[Tick]:
    if axis.is_log:
        marks = _log_marks(axis.low, axis.high)
    else:
        spacing = _spacing(axis.high - axis.low)
        count = round((axis.high - axis.low) / spacing)
        marks = [axis.low + spacing * n for n in range(count + 1)]
    places = axis.place(np.array(marks))
    return [Tick(_percent(at), _short(mark)) for at, mark in zip(places.tolist(), marks)]


def _log_marks(low: float, high: float) -> list[float]:
    """Powers of ten, and 2 and 5 times them where these are few, or every few of many powers."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / _NUM_LINES))
    factors = (1, 2, 5) if high / low <= 100 else (1,)
    marks = [f * 10.0**power for power in range(first, last + 1, every) for f in factors]
    return [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]


def _x_ticks(first: int, last: int) -> list[Tick]:
    steps = sorted({first, (first + last) // 2, last})
    span = max(last - first, 1)
    return [Tick(_percent((step - first) / span), f"{step:,}") for step in steps]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _short(value: float) -> str:
    """A number in few characters: 12k, 3.4M, 0.002, 1e-6."""
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if name == 'k' else size):.6g}{name}"
    text = f"{0.0 if abs(value) < 1e-12 else value:.6g}"
    return text.replace("e-0", "e-").replace("e+0", "e+")
