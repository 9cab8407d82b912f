"""What some ranks find out for all of them, before any process group exists.

The ranks meet at the store from which process groups are made later: torchrun holds it, or rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import cache
from itertools import count
from typing import TypeVar

import torch.distributed as dist

from nvlm.errors import NvlmError
from nvlm.failures import explain
from nvlm.launch import launched
from nvlm.parallel.groups import COLLECTIVE_TIMEOUT
from nvlm.parallel.watch import watch_others

Value = TypeVar("Value")
# Every rank that hears of a failure says so before it ends, because the store may end with it.
_MAX_SECONDS_TO_HEAR = 10.0
_MAX_SECONDS_BETWEEN_LOOKS = 1.0
_calls = count()


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
    store = dist.PrefixStore(f"nvlm/on_ranks/{next(_calls)}", _meeting_place())
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
    _wait_until(lambda: store.check(["failure"]) or store.add("done", 0) == len(ranks))
    if store.check(["failure"]):
        _wait_until_all_heard(store, here.world_size)
        raise NvlmError(store.get("failure").decode())
    return value


@cache
def _meeting_place() -> dist.Store:
    """Where torchrun's variables say. Kept: it would end with rank 0's last reference to it."""
    store, _, _ = next(dist.rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    watch_others()
    return store


def _wait_until_all_heard(store: dist.Store, world_size: int) -> None:
    store.add("heard", 1)
    _wait_until(lambda: store.add("heard", 0) == world_size, _MAX_SECONDS_TO_HEAR)


def _wait_until(is_true: Callable[[], bool], max_seconds: float = float("inf")) -> None:
    """Look again and again: a wait inside the store would hold up signals."""
    deadline, pause_seconds = time.monotonic() + max_seconds, 0.01
    while not is_true() and time.monotonic() < deadline:
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _MAX_SECONDS_BETWEEN_LOOKS)
