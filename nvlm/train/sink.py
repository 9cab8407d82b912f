"""A place where a run's numbers go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# Prints a line for the user.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sink:
    """`write(step, numbers)`, and at the run's end `close(failed)`."""

    write: Callable[[int, dict[str, float]], None]
    close: Callable[[bool], None]
