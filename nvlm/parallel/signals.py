"""Ctrl-C, SIGTERM and a closed terminal end the program in one line and within seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from nvlm.ending import SECONDS_TO_END, begin, leave
from nvlm.launch import is_under_torchrun
from nvlm.printing import say
from nvlm.reports import is_first_to_say, report, reported, write_for_torchrun

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_on_signals() -> None:
    """Exit with 128 + the signal's number, as shells expect: 130 after Ctrl-C, 143 after SIGTERM.

    Python runs its handlers between steps of the main thread, which may be waiting in a collective
    for a process that is gone: a second thread learns of the signal at once and sets the limit. A
    second signal ends the process without waiting. To be called once, by the main thread.
    """
    heard = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        begin()
        if heard.is_set():
            leave(128 + number)
        heard.set()
        if number == signal.SIGINT:
            raise KeyboardInterrupt  # which says so itself
        _say_stopped(number)
        raise SystemExit(128 + number)

    handled = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, stop)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_set_limit, args=(reading, handled, heard), daemon=True).start()
    os.register_at_fork(after_in_child=_forget_in_workers)


def _set_limit(reading: int, handled: list[signal.Signals], heard: threading.Event) -> None:
    while (number := os.read(reading, 1)[0]) not in handled:
        continue  # such as the end of a worker
    begin()
    time.sleep(SECONDS_TO_END)
    if not heard.is_set():  # the main thread waits where it hears nothing
        _say_stopped(number)
    leave(128 + number)


def _say_stopped(number: int) -> None:
    """Once for all processes; not where one of them has failed, which is why the others end."""
    what = f"stopped by {signal.Signals(number).name}"
    found = reported()
    if found is None:
        report(what, is_signal=True)
    elif not found.is_signal:
        write_for_torchrun(f"rank {found.rank} ended before: {found.what}", is_first=False)
        return
    if is_first_to_say(what):
        torchrun = "; if nobody sent it, torchrun did: its summary names the process that ended"
        say(what + (torchrun if is_under_torchrun() else ""), sys.stderr)


def _forget_in_workers() -> None:
    """A terminal sends Ctrl-C to workers, too: they leave it to the process that ends them."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
