"""A training of which one rank stands still, or is slow, from its second step on.

Arguments: what happens (a key of `FAULTS`), the rank, then those of `nvlm train`. Nothing in a
configuration makes a process hang, as a dead disk or a broken device does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import nvlm.train.fit  # noqa: F401  # chooses the platform
from nvlm.data.loading.reader import MicroBatchReader
from nvlm.launch import launched
from nvlm.model.nvlm_d import NVLMD

HANGING_STEP = 2


def sleep() -> None:
    time.sleep(10_000)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def compute() -> None:
    """Holds Python's lock in C, for longer than anyone waits, and hears no signal."""
    sum(range(10**15))


def slow_down() -> None:
    time.sleep(1.0)


# What happens -> the method where it does, and how.
FAULTS: dict[str, tuple[type, str, Callable[[], None]]] = {
    "reader": (MicroBatchReader, "_read", sleep),
    "forward": (NVLMD, "forward", sleep),
    "stopped": (NVLMD, "forward", stop),
    "computing": (NVLMD, "forward", compute),
    # In every step from then on.
    "slow": (NVLMD, "forward", slow_down),
}


def hang_in_second_call(of_class: Any, name: str, hang: Callable[[], None]) -> None:
    """A step is one call where it has one micro-batch."""
    call: Callable = getattr(of_class, name)
    calls = 0

    def hanging(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == HANGING_STEP or (calls > HANGING_STEP and hang is slow_down):
            hang()
        return call(*arguments, **named)

    setattr(of_class, name, hanging)


def main() -> None:
    what, rank = sys.argv.pop(1), int(sys.argv.pop(1))
    if launched().rank == rank:
        hang_in_second_call(*FAULTS[what])
    from nvlm.cli import main

    main()


if __name__ == "__main__":
    main()
