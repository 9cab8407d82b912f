"""How long a device takes for something, found without waiting for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nvlm import platform


class DeviceTime:
    """The sum over what was counted since it was asked for last."""

    def __init__(self) -> None:
        # A platform's moments, before and after each.
        self._runs: list[tuple[Any, Any]] = []

    @contextmanager
    def counted(self) -> Iterator[None]:
        here = platform.current()
        started = here.moment()
        yield
        self._runs.append((started, here.moment()))

    def take_seconds(self) -> float:
        """The host has to have waited for something behind all that was counted."""
        runs, self._runs = self._runs, []
        here = platform.current()
        return sum(here.seconds_between(started, ended) for started, ended in runs)
