"""One attempt of a run: the processes that torchrun started together, and the store they share.

torchrun starts a run's processes again after a failure, and when a machine joins or leaves. Its
store outlives them: what an earlier attempt left there would be taken for this one's, by torch's
own rendezvous too. How often its torchrun has started a process says nothing, as each machine
counts for itself. So the processes agree on a name that no other attempt has, and keep to names
below it.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from functools import cache
from uuid import uuid4

import torch.distributed as dist

from nvlm import reports
from nvlm.errors import NvlmError
from nvlm.hashes import hash_text
from nvlm.launch import has_torchruns_store, launched
from nvlm.parallel.watch import watch_others
from nvlm.printing import listed

# A collective that waits longer means that a process is gone or stuck; torchrun then stops all.
COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)
_MAX_SECONDS_BETWEEN_LOOKS = 1.0


@cache
def attempt_store() -> dist.Store:
    """Where this attempt's processes meet; every rank calls this, and it is kept.

    Kept, because it would end with rank 0's last reference to it.

    Raises:
        NvlmError: some processes did not come; which ones.
    """
    here = launched()
    store, _, _ = next(dist.rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    watch_others()
    # A store of rank 0's own began with it.
    name = agree_on_name(store, here.rank, here.world_size) if has_torchruns_store() else "only"
    reports.set_attempt(name)
    return dist.PrefixStore(f"nvlm/{name}", store)


def agree_on_name(store: dist.Store, rank: int, world_size: int) -> str:
    """A name that processes which come here together have in common, and no others before or after.

    Each process leaves a word of its own in the place of its rank; rank 0 publishes all of them
    until every process has found its own among them, so that none is an earlier attempt's.

    Raises:
        NvlmError: some processes did not come; which ones.
    """
    shared = dist.PrefixStore("nvlm/attempts", store)
    own = uuid4().hex
    shared.set(f"word{rank}", own)
    seconds = COLLECTIVE_TIMEOUT.total_seconds()
    name = ""

    def lead() -> bool:
        nonlocal name
        places = [f"word{other}" for other in range(world_size)]
        if not shared.check(places):
            return False
        words = b" ".join(shared.multi_get(places)).decode()
        if name != _name_of(words):
            name = _name_of(words)
            shared.set("words", words)
        if shared.add(f"{name}/found", 0) < world_size - 1:
            return False
        shared.set(f"{name}/complete", "")
        return True

    def follow() -> bool:
        nonlocal name
        words = shared.get("words").decode() if shared.check(["words"]) else ""
        if own not in words.split():
            return False
        if name != _name_of(words):
            name = _name_of(words)
            shared.add(f"{name}/found", 1)
        return shared.check([f"{name}/complete"])

    wait_until(lead if rank == 0 else follow, seconds)
    if not name or not shared.check([f"{name}/complete"]):
        missing = [r for r in range(world_size) if not shared.check([f"word{r}"])]
        who = f"ranks {listed(missing, 8)} have not" if missing else "not all ranks have"
        raise NvlmError(
            f"after {seconds / 60:.0f} minutes {who} come to the run's store: see whether their "
            "machines reach it, and started with the same command"
        )
    return name


def wait_until(is_true: Callable[[], bool], max_seconds: float = float("inf")) -> None:
    """Look again and again: a wait inside the store would hold up signals."""
    deadline, pause_seconds = time.monotonic() + max_seconds, 0.01
    while not is_true() and time.monotonic() < deadline:
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _MAX_SECONDS_BETWEEN_LOOKS)


def _name_of(words: str) -> str:
    return hash_text(words)[:16]
