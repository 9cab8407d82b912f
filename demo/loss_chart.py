"""The report's curve of a stage's loss: where its lines and labels stand, for an inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 52, 12, 30  # margins


@dataclass(frozen=True)
class LossLine:
    """A line of the grid, and the loss that it is labelled with."""

    y: str
    label_y: str
    label: str


@dataclass(frozen=True)
class StepLabel:
    x: str
    anchor: str
    label: str


@dataclass(frozen=True)
class LossChart:
    """Coordinates in the units of the SVG's view box, as texts of one decimal."""

    width: int
    height: int
    left: int  # x of the axis
    right: int  # x where the grid ends
    lines: list[LossLine]
    steps: list[StepLabel]
    raw_points: str
    mean_points: str
    last_x: str
    last_y: str
    last_label: str


def loss_chart(steps: Sequence[int], losses: Sequence[float]) -> LossChart:
    """The loss over the steps, on a linear scale from zero, and its running mean."""
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    first, last = steps[0], steps[-1]
    ceiling, spacing = _axis(max(losses))

    def x(step: float) -> float:
        return _LEFT + inner_width * (step - first) / max(last - first, 1)

    def y(loss: float) -> float:
        return _TOP + inner_height * (1 - loss / ceiling)

    def points(values: Sequence[float]) -> str:
        return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, values))

    marks = [tick * spacing for tick in range(round(ceiling / spacing) + 1)]
    labelled = sorted({first, round((first + last) / 2), last})
    running = _running_mean(losses)
    return LossChart(
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        lines=[LossLine(f"{y(mark):.1f}", f"{y(mark) + 4:.1f}", f"{mark:g}") for mark in marks],
        steps=[
            StepLabel(f"{x(step):.1f}", "end" if step == last else "middle", f"{step:,}")
            for step in labelled
        ],
        raw_points=points(losses),
        mean_points=points(running),
        last_x=f"{x(last) + 7:.1f}",
        last_y=f"{y(running[-1]) + 4:.1f}",
        last_label=f"{running[-1]:.3f}",
    )


def _axis(highest: float) -> tuple[float, float]:
    """(top of the axis, distance of its lines): 1, 2 or 5 times a power of ten, 3 to 6 lines."""
    highest = max(highest, 1e-6)
    power = 10.0 ** math.floor(math.log10(highest))
    spacing = next(
        power * factor
        for factor in (0.2, 0.5, 1, 2, 5)
        if highest / (power * factor) <= 5
    )  # fmt: skip
    return spacing * math.ceil(highest / spacing), spacing


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean over about 5 % of the steps, corrected for its start."""
    decay = 1 - 1 / max(2.0, len(values) / 20)
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append(mean / weight)
    return result
