"""Ctrl-C, SIGTERM and a closed terminal end the program in one line and within seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from nvlm.launch import rank_to_speak
from nvlm.printing import say

# What is open is closed in this time (files, a tracker's connection); then the process ends anyway.
_SECONDS_TO_END = 10.0
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_on_signals() -> None:
    """Exit with 128 + the signal's number, as shells expect: 130 after Ctrl-C, 143 after SIGTERM.

    Python runs its handlers between steps of the main thread, which may be waiting in a collective
    for a process that is gone: a second thread learns of the signal at once and sets the limit. A
    second signal ends the process without waiting. To be called once, by the main thread.
    """
    heard = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal heard
        if heard:
            os._exit(128 + number)
        heard = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt  # which says so itself
        if rank_to_speak() == 0:
            say(f"stopped by {signal.Signals(number).name}", sys.stderr)
        raise SystemExit(128 + number)

    handled = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, stop)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_set_limit, args=(reading, handled), daemon=True).start()
    os.register_at_fork(after_in_child=_forget_in_workers)


def _set_limit(reading: int, handled: list[signal.Signals]) -> None:
    while (number := os.read(reading, 1)[0]) not in handled:
        continue  # such as the end of a worker
    time.sleep(_SECONDS_TO_END)
    os._exit(128 + number)


def _forget_in_workers() -> None:
    """A terminal sends Ctrl-C to workers, too: they leave it to the process that ends them."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
