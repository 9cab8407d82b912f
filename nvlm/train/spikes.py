"""Jumps of the loss or the gradient norm: what counts as one, and what is done about it.

A value is a spike when it is greater than

    median + train.spike.deviations x max(1.4826 x MAD, 0.05 x median)

of the last `train.spike.window` steps, MAD being the median of the distances from the median:
1.4826 of it is a standard deviation where values are normal, and no spike before moves it. The
floor of 5 % is for stretches in which values hardly differ. Nothing is judged before a quarter of
the window, and 8 steps, have been seen. Spikes enter the window like all other values: where a loss
stays high, that is its new level after half a window.

All ranks judge the same numbers, which were reduced over all of them, and so come to the same.
"""

from __future__ import annotations

import statistics
import sys
from collections import deque
from dataclasses import dataclass

from nvlm.config.run_sections import TrainConfig
from nvlm.config.schema import RunConfig
from nvlm.errors import TrainingError
from nvlm.parallel.groups import is_main_process
from nvlm.printing import say
from nvlm.train.events import note_event

_LEAST_SEEN = 8
_MAD_TO_DEVIATION = 1.4826
_LEAST_DEVIATION = 0.05
_NAMES = {"loss": "loss", "grad_norm": "gradient norm"}


@dataclass(frozen=True)
class Spike:
    """A value that jumped."""

    name: str  # `loss` or `grad_norm`
    value: float
    median: float  # of the window before
    limit: float

    def __str__(self) -> str:
        return (
            f"the {_NAMES[self.name]} is {self.value:.4g}, over {self.limit:.4g}; the median of "
            f"the steps before is {self.median:.4g}"
        )


class SpikeWatch:
    """The last steps' losses and gradient norms."""

    def __init__(self, config: TrainConfig):
        self._settings = config.spike
        self._last = {name: deque[float](maxlen=config.spike.window) for name in _NAMES}

    def look(self, loss: float, grad_norm: float) -> list[Spike]:
        """What of a step jumped. To be called once for each step; remembers its values."""
        found = []
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            last = self._last[name]
            if len(last) >= min(max(_LEAST_SEEN, self._settings.window // 4), last.maxlen or 0):
                median, limit = _median_and_limit(last, self._settings.deviations)
                if value > limit:
                    found.append(Spike(name, value, median, limit))
            last.append(value)
        return found

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint: JSON values, which say every number exactly."""
        return {name: list(last) for name, last in self._last.items()}

    def load_state(self, state: dict[str, list[float]]) -> None:
        for name, last in self._last.items():
            last.clear()
            last.extend(state.get(name, []))


def react(found: list[Spike], config: RunConfig, step: int) -> None:
    """Say what jumped and what `train.on_spike` made of the step, as an event too.

    Raises:
        TrainingError: the run is to stop.
    """
    what = f"step {step}: {' and '.join(map(str, found))}"
    policy = config.train.on_spike
    done = {"warn": "trained on all the same", "skip": "its update is left out"}
    text = f"{what}; {done.get(policy, 'the run stops')}"
    kind = "skip" if policy == "skip" else "spike"
    note_event(config.run.dir, kind, step, text, **{spike.name: spike.value for spike in found})
    if policy == "stop":
        raise TrainingError(
            f"{what}\n  train.on_spike is stop: the step's update was not made, and nothing of it "
            "saved; the run's last checkpoint and its metrics are as they were"
        )
    if is_main_process():
        say(text, sys.stderr)


def _median_and_limit(values: deque[float], deviations: float) -> tuple[float, float]:
    median = statistics.median(values)
    spread = statistics.median(abs(value - median) for value in values)
    deviation = max(_MAD_TO_DEVIATION * spread, _LEAST_DEVIATION * abs(median))
    return median, median + deviations * deviation
