"""Requests to a training that it save and end: those that were made of this process.

A training takes them at the end of a step, on all ranks at the same one (`nvlm.train.step` adds
them up with the step's counts). Before its first step there is nothing to save: it ends at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

# "stopped as asked, nothing is lost: the same command goes on": EX_TEMPFAIL of sysexits.h.
STOPPED = 75

# Signals that ask a training. SIGUSR1 is a scheduler's notice, which may come more than once.
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
COMMAND = "nvlm stop"
TIME_LIMIT = "run.max_minutes"
# What a request may come from; ranks add up how many have heard of each.
REASONS = (*(number.name for number in ASKING), COMMAND, TIME_LIMIT)

Taking = Literal["nothing", "at once", "after the step"]
_taking: Taking = "nothing"
_asked: str | None = None


class Stopped(SystemExit):
    """A training was asked to stop, and did. Ends the program with `STOPPED`."""

    def __init__(self, reason: str):
        super().__init__(STOPPED)
        self.reason = reason


def ask(reason: str) -> None:
    """Ask this process's training to stop; the first reason stays."""
    global _asked
    assert reason in REASONS, reason
    _asked = _asked or reason


def asked() -> str | None:
    """The reason why this process was asked to stop, if it was."""
    return _asked


def taking() -> Taking:
    """What a signal does: end any program, or a training that has not begun, or only ask it."""
    return _taking


def take_no_more() -> None:
    """From now on signals end this process at once, because it cannot go on to its next save."""
    _set_taking("nothing")


@contextmanager
def taken(how: Taking) -> Iterator[None]:
    """Take requests like this within the block; to be used by the main thread."""
    before = _taking
    _set_taking(how)
    try:
        yield
    finally:
        _set_taking(before)


def _set_taking(how: Taking) -> None:
    global _taking
    _taking = how
    for number in ASKING:
        # While steps are taken, system calls of libraries go on after the signal.
        if callable(signal.getsignal(number)):
            signal.siginterrupt(number, how != "after the step")
