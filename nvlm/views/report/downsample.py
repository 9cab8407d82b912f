"""Curves of any length as few points: every extreme that would be seen is kept, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nvlm.views.report.run_record import Series


def downsample(series: Series, num_columns: int, first: int, last: int) -> Series:
    """The lowest and highest point of each of `num_columns` equal parts of steps `first` to `last`.

    Points keep their order and their values; the first and the last one stay. At most
    2 x `num_columns` + 2 points are left, and a series of no more is returned as it is.
    """
    if len(series) <= 2 * num_columns:
        return series
    width = max(last - first, 1)
    column = (series.steps - first) * num_columns // (width + 1)
    # Steps ascend, so each column is one stretch.
    starts = np.flatnonzero(np.diff(column, prepend=column[0] - 1))
    ends = np.append(starts[1:], len(column))
    kept: set[int] = {0, len(series) - 1}
    for start, end in zip(starts.tolist(), ends.tolist()):
        part = series.values[start:end]
        kept.add(start + int(part.argmin()))
        kept.add(start + int(part.argmax()))
    at = np.array(sorted(kept))
    return Series(series.steps[at], series.values[at])


def running_mean(series: Series, share: float = 0.02) -> Series:
    """Exponential mean over about `share` of the points, corrected for its start."""
    values: NDArray[np.float64] = series.values
    decay = 1 - 1 / max(2.0, len(values) * share)
    mean, weight = 0.0, 0.0
    means = np.empty_like(values)
    for at, value in enumerate(values.tolist()):
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        means[at] = mean / weight
    return Series(series.steps, means)
