"""What the processes of a run tell each other as they end, in torchrun's store.

No collective is needed for it. Where there is no store, or it is gone, each speaks for itself. A
connection serves one question: a thread may be waiting in another one. This file imports no torch
before there is a store.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm.files import write_text
from nvlm.hashes import hash_text
from nvlm.launch import has_torchruns_store, meeting_place, rank_to_speak

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_GONE = (OSError, RuntimeError, ImportError)
_SECONDS_TO_CONNECT = 2.0
_SECONDS_TO_ANSWER = 5.0
_SECONDS_TO_ASK_AGAIN = 0.1
# Of a process that goes on as long as all others do.
SECONDS_BETWEEN_LOOKS = 2.0
_MAX_CHARACTERS = 2000
# Where torchrun wants to read what a process failed of.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_attempt = ""


@dataclass(frozen=True)
class Report:
    """What the first process that ended before its time says."""

    rank: int
    host: str
    what: str
    is_signal: bool  # it was stopped from outside, and the others may have been, too


def open_store() -> TCPStore | None:
    """A connection to the run's store; None: this process runs alone.

    Raises:
        OSError, RuntimeError, ImportError: there is no store, or it does not answer.
    """
    place = meeting_place()
    if place is None:
        return None
    # A look first: torch would try again and again, and log each time.
    socket.create_connection(place, timeout=_SECONDS_TO_CONNECT).close()
    from torch.distributed import TCPStore

    return TCPStore(
        *place,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=_SECONDS_TO_ANSWER),
    )


def is_first_to_say(what: str) -> bool:
    """Whether no other process of the run has said this."""
    try:
        store = open_store()
        return store is None or store.add(store_key(f"said/{hash_text(what)}"), 1) == 1
    except _GONE:
        return True


def report(what: str, is_signal: bool = False) -> None:
    """Tell the others why this process ends; the first report of a run stays."""
    own = Report(rank_to_speak(), socket.gethostname(), what[:_MAX_CHARACTERS], is_signal)
    with suppress(*_GONE):
        store = open_store()
        if store is not None:
            store.compare_set(store_key("ended"), "", json.dumps(asdict(own)))


def reported(seconds: float = 0.0) -> Report | None:
    """The run's report, if there is one within `seconds`."""
    deadline = time.monotonic() + seconds
    with suppress(*_GONE):
        store = open_store()
        while store is not None:
            found = look(store)
            if found is not None or time.monotonic() >= deadline:
                return found
            time.sleep(_SECONDS_TO_ASK_AGAIN)
    return None


def look(store: TCPStore) -> Report | None:
    """The report in an open store, which is asked once.

    Raises:
        RuntimeError: the store is gone.
    """
    key = store_key("ended")
    return Report(**json.loads(store.get(key))) if store.check([key]) else None


def write_for_torchrun(what: str, is_first: bool = True) -> None:
    """Have torchrun say in its summary what this process failed of, and which process was first.

    Args:
        is_first: False: it only ended because of another. torchrun knows no parts of a second, so
            times are rounded down and up.
    """
    path = os.environ.get(_ERROR_FILE)
    if not path:
        return
    timestamp = math.floor(time.time()) if is_first else math.ceil(time.time())
    details = {"py_callstack": what[:_MAX_CHARACTERS], "timestamp": str(timestamp)}
    with suppress(OSError):
        write_text(Path(path), json.dumps({"message": {"message": what, "extraInfo": details}}))


def hold_store() -> None:
    """Wait for the others to look into the store, where it would end with this process."""
    if not has_torchruns_store() and rank_to_speak() == 0 and meeting_place():
        time.sleep(SECONDS_BETWEEN_LOOKS + 0.5)


def show_life(store: TCPStore) -> None:
    """Count up this process's sign of life.

    Raises:
        RuntimeError: the store is gone.
    """
    store.add(store_key(f"alive/{rank_to_speak()}"), 1)


def show_end() -> None:
    """Say that this process's part is done: no sign of life is to be expected."""
    with suppress(*_GONE):
        store = open_store()
        if store is not None:
            store.set(store_key(f"alive/{rank_to_speak()}"), "0")


def signs_of_life(store: TCPStore, rank: int) -> int | None:
    """How often another process has shown life; None: not yet, or it is done.

    Raises:
        RuntimeError: the store is gone.
    """
    count = store.add(store_key(f"alive/{rank}"), 0)
    return count if count > 0 else None


def set_attempt(name: str) -> None:
    """From now on, tell and ask what concerns this attempt of the run: see `parallel.attempt`."""
    global _attempt
    _attempt = name


def store_key(name: str) -> str:
    """Of this attempt: torchrun may start the run's processes again, and keeps its store."""
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"nvlm/{_attempt or f'start{start}'}/{name}"
