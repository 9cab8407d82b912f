"""After which steps a checkpoint is due: every so many, or every so many minutes."""

from __future__ import annotations

import time
from collections.abc import Callable

from nvlm.config.run_sections import CheckpointConfig
from nvlm.config.values import seconds_of
from nvlm.parallel.groups import broadcast_object

_MOST_STEPS_BETWEEN_LOOKS = 1000


class SaveTimes:
    """The same answer on every rank. Where times count, it is that of rank 0's clock.

    Ranks do not ask it after each step, which would make them wait for each other. From how long
    steps took it says how many are to come until the next look: half of those that would fit.
    """

    def __init__(
        self,
        wanted: CheckpointConfig,
        step: int,
        is_main: bool,
        now: Callable[[], float] = time.monotonic,
    ):
        """`step` is the last one that was saved, or 0."""
        self._wanted = wanted
        self._seconds = seconds_of(wanted.every)
        self._is_main = is_main
        self._now = now
        self.restart(step)

    def restart(self, step: int) -> None:
        """A checkpoint was begun at `step`: the next one is due that much later."""
        self._began, self._began_at = self._now(), step
        self._next_look = step + 1

    def is_due(self, step: int) -> bool:
        """Every rank calls this after each step."""
        kept_every = self._wanted.keep_every
        if kept_every is not None and step % kept_every == 0:
            return True
        if self._seconds is None:
            return step % int(self._wanted.every) == 0
        if step < self._next_look:
            return False
        to_wait = broadcast_object(self._steps_to_wait(step) if self._is_main else None)
        assert to_wait is not None
        self._next_look = step + max(1, to_wait)
        return to_wait == 0

    def _steps_to_wait(self, step: int) -> int:
        """0: the time has come."""
        assert self._seconds is not None
        passed = self._now() - self._began
        if passed >= self._seconds:
            return 0
        seconds_per_step = passed / max(1, step - self._began_at)
        half = (self._seconds - passed) / 2
        if half >= _MOST_STEPS_BETWEEN_LOOKS * seconds_per_step:
            return _MOST_STEPS_BETWEEN_LOOKS
        return max(1, int(half / seconds_per_step))
