"""What some ranks find out or do for all of them, where a collective would not wait long enough.

The ranks meet at the store from which process groups are made later: torchrun holds it, or rank 0.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import torch.distributed as dist

from nvlm.errors import NvlmError
from nvlm.failures import explain
from nvlm.launch import launched
from nvlm.parallel.attempt import attempt_store, wait_until
from nvlm.printing import listed

Value = TypeVar("Value")
# Every rank that hears of a failure says so before it ends, because the store may end with it.
_MAX_SECONDS_TO_HEAR = 10.0
# Terabytes take longer on a slow disk than a collective may. Ranks that end are noticed by other
# means, so this limit is for a disk that hangs.
MEETING_TIMEOUT = datetime.timedelta(hours=2)
_calls = count()
_answers = count()
# Of each channel.
_meetings: dict[str, count] = defaultdict(count)


@dataclass(frozen=True)
class Channel:
    """What all ranks say to each other in the same order.

    A thread that writes while training goes on has one of its own: its messages come between those
    of the steps in another order on each rank.
    """

    name: str = ""
    group: dist.ProcessGroup | None = None  # None: the default one

    def gather(self, value: Value, what: str) -> list[Value]:
        """`value` of every rank; `what` is said where one does not come, see `meet`."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return [value]
        meet(what, self.name)
        gathered: list = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered


MAIN_CHANNEL = Channel()


def on_ranks(ranks: Collection[int], action: Callable[[], Value]) -> Value | None:
    """Run `action` on `ranks` while all others wait, however long that takes; every rank calls it.

    Returns what `action` returned; None on the others.

    Raises:
        NvlmError: `action` failed on one of the ranks; every rank raises the same message. The rank
            itself raises what it met if that is a fault of ours.
    """
    here = launched()
    if here.world_size == 1:
        return action()
    # Ranks call this in the same order, so the numbers agree.
    store = dist.PrefixStore(f"nvlm/on_ranks/{next(_calls)}", attempt_store())
    value: Value | None = None
    if here.rank in ranks:
        try:
            value = action()
        except Exception as error:
            message = explain(error)
            unexplained = f"process {here.rank}: {type(error).__name__}: {error}"
            store.compare_set("failure", "", message or unexplained)  # the first one stays
            if message is None:
                _wait_until_all_heard(store, here.world_size)
                raise
        store.add("done", 1)
    wait_until(lambda: store.check(["failure"]) or store.add("done", 0) == len(ranks))
    if store.check(["failure"]):
        _wait_until_all_heard(store, here.world_size)
        raise NvlmError(store.get("failure").decode())
    return value


def from_main_rank(action: Callable[[], Value]) -> Value:
    """What `action` returns on rank 0, on every rank; JSON values only. Every rank calls it.

    Raises:
        NvlmError: see `on_ranks`.
    """
    here = launched()
    if here.world_size == 1:
        return action()
    store = dist.PrefixStore(f"nvlm/from_main_rank/{next(_answers)}", attempt_store())

    def act() -> Value:
        value = action()
        store.set("value", json.dumps(value))
        return value

    value = on_ranks([0], act)
    return json.loads(store.get("value")) if value is None else value


def meet(what: str, channel: str = "") -> None:
    """Wait until every rank has come here, for up to `MEETING_TIMEOUT`; every rank calls this.

    Before a collective whose ranks may come to it at very different times.

    Args:
        what: the ranks were doing, for the message.
        channel: the name of the `Channel` on which they meet.

    Raises:
        NvlmError: some did not come; which ones.
    """
    here = launched()
    if here.world_size == 1:
        return
    store = dist.PrefixStore(f"nvlm/meet/{channel}{next(_meetings[channel])}", attempt_store())
    store.set(f"rank{here.rank}", "")
    store.add("come", 1)
    seconds = MEETING_TIMEOUT.total_seconds()
    wait_until(lambda: store.add("come", 0) == here.world_size, seconds)
    if store.add("come", 0) < here.world_size:
        missing = [r for r in range(here.world_size) if not store.check([f"rank{r}"])]
        raise NvlmError(
            f"{what}: after {seconds / 60:.0f} minutes not done on ranks {listed(missing, 8)}: see "
            "whether their disk hangs"
        )


def _wait_until_all_heard(store: dist.Store, world_size: int) -> None:
    store.add("heard", 1)
    wait_until(lambda: store.add("heard", 0) == world_size, _MAX_SECONDS_TO_HEAR)
