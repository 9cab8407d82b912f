"""Processes that end when another process of the run has failed, on whatever machine.

torchrun ends the processes of its own machine when one of them ends, and no others: these would
wait in a collective until its time is up. So each looks into the run's store now and then.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvlm import stop_requests
from nvlm.ending import has_begun, is_program
from nvlm.launch import launched
from nvlm.printing import say
from nvlm.reports import (
    SECONDS_BETWEEN_LOOKS,
    Report,
    look,
    open_store,
    report,
    show_end,
    show_life,
    signs_of_life,
)

if TYPE_CHECKING:
    from torch.distributed import TCPStore

# For torchrun, which is faster where it sees the one that failed, and for what both have to say.
_SECONDS_FOR_OTHERS = 3.0
# A store that cannot be reached for so long has ended with its machine.
_SECONDS_TO_COME_BACK = 60.0
# A process that shows no sign of life for so long is gone with its machine, or was stopped. Reading
# and writing goes on beside the thread that shows it; a long call into Python's own code does not.
_SECONDS_WITHOUT_LIFE = 120.0

_watching: threading.Event | None = None
# What a training does about a process without a sign of life: it says more, and ends the run.
_on_silence: Callable[[TCPStore], None] | None = None


def watch_others() -> None:
    """From now on, end this process as SIGTERM does when another one has failed.

    Does nothing where the process runs alone, watches already, or belongs to another program.
    """
    global _watching
    if _watching is not None or not is_program() or launched().world_size == 1:
        return
    _watching = threading.Event()
    threading.Thread(target=_watch, args=(_watching,), daemon=True).start()


def stop_watching() -> None:
    """To be called before this process's part of the run is done: others may be done earlier."""
    global _watching
    if _watching is not None:
        _watching.set()
        _watching = None
        show_end()


@contextmanager
def silence_calls(action: Callable[[TCPStore], None]) -> Iterator[None]:
    """Have `action` done about a process without a sign of life within the block."""
    global _on_silence
    _on_silence = action
    try:
        yield
    finally:
        _on_silence = None


@dataclass
class _Neighbour:
    """The process with the next number: each looks after one, so that all are looked after."""

    rank: int
    signs: int | None = None
    looked: float = 0.0
    silent_seconds: float = 0.0

    def look(self, store: TCPStore) -> Report | None:
        """What to report of it: nothing before its first sign of life, or once it is done."""
        signs, now = signs_of_life(store, self.rank), time.monotonic()
        # A process that was itself suspended, with all others perhaps, did not listen meanwhile.
        listened_seconds = min(now - self.looked, 2 * SECONDS_BETWEEN_LOOKS)
        self.looked = now
        if signs is None or signs != self.signs:
            self.signs, self.silent_seconds = signs, 0.0
            return None
        self.silent_seconds += listened_seconds
        if self.silent_seconds < _SECONDS_WITHOUT_LIFE:
            return None
        if _on_silence is not None:
            _on_silence(store)
            return None
        what = (
            f"rank {self.rank} has given no sign of life for {self.silent_seconds:.0f} s: its "
            "machine is gone, or it was stopped"
        )
        report(what)
        return look(store)


def _watch(stopped: threading.Event) -> None:
    store, answered = None, time.monotonic()
    here = launched()
    neighbour = _Neighbour((here.rank + 1) % here.world_size)
    while not stopped.wait(SECONDS_BETWEEN_LOOKS):
        try:
            store = store or open_store()
            assert store is not None, "there are several processes"
            show_life(store)
            found = look(store) or neighbour.look(store)
            answered = time.monotonic()
        except (OSError, RuntimeError, ImportError):
            store = found = None
            if time.monotonic() - answered > _SECONDS_TO_COME_BACK:
                place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                what = f"the run's store at {place}, which torchrun or rank 0 holds, is gone"
                found = Report(rank=-1, host="", what=what, is_signal=False)
        if found is not None:
            break
    else:
        return
    if stopped.wait(_SECONDS_FOR_OTHERS) or has_begun():
        return
    # Each machine may have a log of its own.
    if launched().local_rank == 0 and found.host != socket.gethostname():
        whose = f"rank {found.rank} on {found.host}: " if found.host else ""
        say(f"this process ends because of {whose}{found.what}", sys.stderr)
    stop_requests.take_no_more()
    os.kill(os.getpid(), signal.SIGTERM)
