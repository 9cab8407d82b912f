"""The end of a process that others of its run may be waiting for, or that waits for them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# What is open is closed in this time (files, a tracker's connection); then the process ends anyway.
SECONDS_TO_END = 10.0

_releases: list[Callable[[], None]] = []
_is_program = False
_has_begun = False


def become_program() -> None:
    """Let failures end this process. The command line says so; a library's caller may go on."""
    global _is_program
    _is_program = True


def is_program() -> bool:
    return _is_program


def begin() -> None:
    """Say that this process is ending: what it hears of others is of no interest any more."""
    global _has_begun
    _has_begun = True


def has_begun() -> bool:
    return _has_begun


@contextmanager
def released_at_end(release: Callable[[], None]) -> Iterator[None]:
    """Have `release` called on leaving, also where `leave` ends the process before."""
    _releases.append(release)
    try:
        yield
    finally:
        _releases.remove(release)
        release()


def at_end(release: Callable[[], None]) -> None:
    """Have `release` called where `leave` ends the process."""
    _releases.append(release)


def leave(code: int) -> NoReturn:
    """End the process now.

    Python's own way out waits: for threads, for workers, and, where one rank of several has failed,
    for communicators that the others never let go.
    """
    for release in reversed(_releases):
        with suppress(Exception):  # such as a disk that fails
            release()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it, or there is none
            stream.flush()
    os._exit(code)


def leave_soon(code: int) -> None:
    """End the process in `SECONDS_TO_END` at the latest, whatever its main thread waits for."""

    def end() -> None:
        time.sleep(SECONDS_TO_END)
        leave(code)

    threading.Thread(target=end, daemon=True).start()
