"""Data ranks that take longer for their own work than the others, which wait for them.

Own work is reading samples and everything up to the gradients of a rank's own micro-batches, before
data ranks wait for each other. What a device does is measured on the device. Every
`log.slow_rank_steps` steps each data rank leaves the median of its seconds in the run's store, and
the main process compares those of the window before: no collective, and nobody waits.

The processes of one replica wait for each other inside their work: they are named together.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch.distributed as dist

from nvlm import platform
from nvlm.config.schema import RunConfig
from nvlm.parallel.attempt import attempt_store
from nvlm.parallel.groups import Parallel
from nvlm.printing import say
from nvlm.train.events import note_event


@dataclass(frozen=True)
class Pace:
    """How long a data rank took a step, over a window."""

    data_rank: int
    ranks: list[int]  # of its replica
    host: str
    device: str
    seconds: float
    reading_seconds: float  # of these


class SlowRanks:
    """Every process has one; those that read data say how fast they are, rank 0 compares."""

    def __init__(self, config: RunConfig, parallel: Parallel):
        self._config = config
        self._parallel = parallel
        self._own: list[float] = []
        self._reading: list[float] = []
        self._named: set[int] = set()  # in the window before

    def note(self, step: int, own_seconds: float, reading_seconds: float) -> None:
        """To be called after each step, by all processes; says which data ranks are slow."""
        if self._parallel.data_size == 1 or not self._parallel.is_model_parallel_main:
            return
        self._own.append(own_seconds + reading_seconds)
        self._reading.append(reading_seconds)
        every = self._config.log.slow_rank_steps
        if step % every:
            return
        pace = self._pace()
        self._own, self._reading = [], []
        with suppress(RuntimeError):  # a store that is gone ends the run by other means
            store = attempt_store()
            store.set(f"pace/{step}/{pace.data_rank}", json.dumps(asdict(pace)))
            places = [f"pace/{step - every}/{n}" for n in range(self._parallel.data_size)]
            if self._parallel.is_main and step > every and store.check(places):
                paces = [Pace(**json.loads(text)) for text in store.multi_get(places)]
                self._say(step, find_slow(paces, self._config.log.slow_rank_factor), paces)
                for place in places:
                    store.delete_key(place)

    def _pace(self) -> Pace:
        parallel = self._parallel
        return Pace(
            data_rank=parallel.data_rank,
            ranks=sorted(
                rank + number * parallel.tensor_size  # of each context-parallel rank
                for rank in dist.get_process_group_ranks(parallel.groups.mp)
                for number in range(parallel.context_size)
            ),
            host=socket.gethostname(),
            device=platform.current().device_name(),
            seconds=statistics.median(self._own),
            reading_seconds=statistics.median(self._reading),
        )

    def _say(self, step: int, slow: list[Pace], paces: Sequence[Pace]) -> None:
        """Once for as long as a data rank stays slow."""
        usual = statistics.median(pace.seconds for pace in paces)
        for pace in slow:
            if pace.data_rank in self._named:
                continue
            text = describe(pace, usual, self._config.log.slow_rank_steps)
            note_event(self._config.run.dir, "slow_rank", step, text, usual=usual, **asdict(pace))
            say(text, sys.stderr)
        self._named = {pace.data_rank for pace in slow}


def find_slow(paces: Sequence[Pace], factor: float) -> list[Pace]:
    """Those that take more than `factor` times the median of the others, the slowest first."""
    slow = []
    for pace in paces:
        others = [other.seconds for other in paces if other is not pace]
        if others and pace.seconds > factor * statistics.median(others):
            slow.append(pace)
    return sorted(slow, key=lambda pace: -pace.seconds)


def describe(pace: Pace, usual: float, num_steps: int) -> str:
    """One line; `usual` is the median of all data ranks, in seconds."""
    who = f"rank {pace.ranks[0]}"
    if len(pace.ranks) > 1:
        who = f"data rank {pace.data_rank} (ranks {', '.join(map(str, pace.ranks))})"
    return (
        f"slow: {who} on {pace.host}, {pace.device}, takes {pace.seconds:.3g} s a step for its own "
        f"work ({pace.reading_seconds:.3g} s of it reading), the median data rank {usual:.3g} s, "
        f"over {num_steps} steps"
    )
