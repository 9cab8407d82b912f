"""Checks of several processes that end in time, and say which process holds them up.

A process that waits in a collective hears nothing. So a thread beside it looks at the clock, and
says in the run's store where the process is.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

from nvlm.ending import leave
from nvlm.launch import launched
from nvlm.printing import listed, say
from nvlm.reports import is_first_to_say, report

_SECONDS_BETWEEN_LOOKS = 0.2
# Their time is up at about the same moment.
_SECONDS_FOR_OTHERS = 2.0
_CANNOT_GO_ON = 2
# All say it within their own time; the ones that only wait leave the word to the first.
_HELD_UP = "a check of the processes is held up"


@dataclass
class Deadline:
    """The check that this process is in, and since when."""

    limit_seconds: float
    store: dist.Store | None = None  # None: not met yet
    name: str = "meeting at the run's store"
    began: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """End the process, and say what holds it up, where a check takes longer than the limit."""
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        finally:
            self.ended.set()

    def begin(self, name: str) -> None:
        """Come to the next check; every process calls this with the same names in turn."""
        self.name, self.began = name, time.monotonic()

    def _watch(self) -> None:
        while not self.ended.wait(_SECONDS_BETWEEN_LOOKS):
            if time.monotonic() - self.began > self.limit_seconds:
                break
        else:
            return
        what = f"{self.name}: not done after {self.limit_seconds:.0f} s: {self._who()}"
        report(what)
        if is_first_to_say(_HELD_UP):
            say(f"error: {what}", sys.stderr)
        leave(_CANNOT_GO_ON)

    def _who(self) -> str:
        """The processes that are not where most are, or do not say where."""
        if self.store is None:
            return "does every machine reach MASTER_ADDR and MASTER_PORT, and has each started?"
        own = launched()
        self.store.set(f"doctor/where/{own.rank}", json.dumps([self.name, _function()]))
        time.sleep(_SECONDS_FOR_OTHERS)
        places: dict[int, tuple[str, str]] = {}
        for rank in range(own.world_size):
            key = f"doctor/where/{rank}"
            if self.store.check([key]):
                places[rank] = tuple(json.loads(self.store.get(key)))
        silent = [rank for rank in range(own.world_size) if rank not in places]
        if silent:
            return f"{_ranks(silent)} gives no sign of life: stopped, or its machine is gone"
        usual, _ = Counter(places.values()).most_common(1)[0]
        others = [rank for rank, place in places.items() if place != usual]
        if not others:
            return f"all are in {usual[1]}, and no data comes through: see their network"
        name, function = places[others[0]]
        where = function if name == usual[0] else f"{function} of another check ({name})"
        return f"{_ranks(others)} is in {where}, the others are in {usual[1]}"


def _function() -> str:
    """What the main thread is in: the innermost function."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"each of ranks {listed(ranks, 8)}"
