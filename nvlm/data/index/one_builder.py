"""Many processes need a thing that is not there: one builds it, and nobody waits in line for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from filelock import FileLock, Timeout

Thing = TypeVar("Thing", covariant=True)
_SECONDS_BETWEEN_LOOKS = 0.2


class Load(Protocol[Thing]):
    """Loads the thing; None where it is not there or not what is needed."""

    def __call__(self, *, say_damage: bool = False) -> Thing | None: ...


def one_builds(
    lock_file: Path, last_file: Path, load: Load[Thing], build: Callable[[], None]
) -> Thing | None:
    """What `load` gives, built here or by another process; None: not even after building it here.

    The process that gets the lock builds. The others load what is there as soon as it is, without
    the lock: one after the other, a thousand readers would look at all shards of all sources in
    turn.

    Args:
        last_file: what `build` writes last; looked at to see whether loading is worth it.

    Raises:
        OSError: the lock cannot be made.
    """
    lock = FileLock(lock_file)
    seen = None
    while True:
        try:
            with lock.acquire(timeout=0):
                thing = load(say_damage=True)
                if thing is None:
                    build()
                    thing = load()
                return thing
        except Timeout:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        written = _time_written(last_file)
        if written != seen:
            seen = written
            thing = load()
            if thing is not None:
                return thing


def _time_written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
