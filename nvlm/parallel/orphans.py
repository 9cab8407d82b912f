"""Ranks that end with the torchrun that started them, also when that is killed; and siblings."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from nvlm.ending import leave
from nvlm.launch import is_under_torchrun, num_local_processes
from nvlm.reports import report

if TYPE_CHECKING:
    import psutil

# A process that starts nvlm may name itself here, as `process id`, to take it along when it ends.
ENDS_WITH = "NVLM_ENDS_WITH"
_LAUNCHED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"
_SECONDS_BETWEEN_LOOKS = 1.0


def end_with_launcher() -> None:
    """End this process within seconds once torchrun, or what else launched it, is gone.

    Otherwise ranks of a killed torchrun would train on, unseen, beside those of the next start. A
    process that was started by hand outlives its shell.
    """
    launchers = find_launchers()
    if launchers:
        threading.Thread(target=_watch, args=(launchers,), daemon=True).start()


def find_launchers() -> list[psutil.Process]:
    """The processes that this one ends with: none where it was started by hand.

    Under torchrun its ancestors up to torchrun itself, which is the first without the variable that
    it gives to what it starts; there may be a shell script in between.
    """
    import psutil

    launchers: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess, ValueError):
        if named := os.environ.get(ENDS_WITH):
            launchers.append(psutil.Process(int(named)))
    with suppress(psutil.Error):  # another user's: those that are known by then are watched
        if _LAUNCHED_BY_TORCHRUN in os.environ:
            for ancestor in psutil.Process().parents():
                launchers.append(ancestor)
                if _LAUNCHED_BY_TORCHRUN not in ancestor.environ():
                    break
    return launchers


def has_missing_sibling() -> bool:
    """Whether torchrun started another process on this machine that runs no more.

    False where torchrun started none.
    """
    import psutil

    launchers = find_launchers() if is_under_torchrun() else []
    if not launchers:
        return False
    try:
        return sum(map(is_running, launchers[-1].children())) < num_local_processes()
    except psutil.Error:
        return False


def is_running(process: psutil.Process) -> bool:
    """Whether it still runs: no other process has taken its number, and it is no zombie."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _watch(launchers: list[psutil.Process]) -> None:
    while all(map(is_running, launchers)):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    # On other machines the run goes on otherwise; where the store is gone too, nobody hears it.
    report("the torchrun that started it is gone")
    leave(1)
