"""Ctrl-C, SIGTERM and a closed terminal end the program in one line and within seconds.

A training between its first step and its last is only asked (`nvlm.stop_requests`): it saves first.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from types import FrameType

from nvlm import stop_requests
from nvlm.ending import SECONDS_TO_END, begin, has_begun, leave
from nvlm.launch import is_under_torchrun
from nvlm.parallel.orphans import has_missing_sibling
from nvlm.printing import say
from nvlm.reports import is_first_to_say, report, reported, write_for_torchrun
from nvlm.stop_requests import ASKING

_STOPPING = (*ASKING, signal.SIGHUP)
# A scheduler signals torchrun and its ranks, and torchrun its ranks again: that is one signal.
_SECONDS_OF_ONE_SIGNAL = 3.0
_SECONDS_BETWEEN_LOOKS = 1.0


def stop_on_signals() -> None:
    """Exit with 128 + the signal's number, as shells expect: 130 after Ctrl-C, 143 after SIGTERM.

    Python runs its handlers between steps of the main thread, which may be waiting in a collective
    for a process that is gone: a second thread learns of the signal at once and sets the limit. A
    second signal ends the process without waiting. To be called once, by the main thread.
    """
    heard = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        if number in ASKING and stop_requests.taking() == "after the step":
            return  # the thread takes it
        begin()
        if heard.is_set():
            leave(128 + number)
        heard.set()
        if number == signal.SIGINT and stop_requests.taking() == "nothing":
            raise KeyboardInterrupt  # which says so itself
        raise _end_now(number)

    handled = [number for number in _STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, stop)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reading, handled, heard), daemon=True).start()
    os.register_at_fork(after_in_child=_forget_in_workers)


def _listen(reading: int, handled: list[signal.Signals], heard: threading.Event) -> None:
    request = _Request()
    while True:
        pause = _SECONDS_BETWEEN_LOOKS if stop_requests.asked() else None
        if not select.select([reading], [], [], pause)[0]:
            request.look()
            continue
        number = os.read(reading, 1)[0]
        if number not in handled:  # such as the end of a worker
            continue
        if number in ASKING and stop_requests.taking() == "after the step":
            request.hear(signal.Signals(number))
            continue
        begin()
        time.sleep(SECONDS_TO_END)
        if not heard.is_set():  # the main thread waits where it hears nothing
            _end_now(number)
        leave(128 + number)


class _Request:
    """Signals that ask a training, and whether it can still do what they ask for."""

    def __init__(self) -> None:
        self._first: float | None = None

    def hear(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if number != signal.SIGUSR1:
            least = _SECONDS_OF_ONE_SIGNAL if is_under_torchrun() else 0.0
            if self._first is not None and now - self._first >= least:
                say(f"a second {number.name}: ended, and not saved", sys.stderr)
                begin()
                leave(128 + number)
            self._first = self._first or now
        if not self._is_hopeless(number) and stop_requests.asked() is None:
            stop_requests.ask(number.name)
            what = f"{number.name}: saving at the end of this step; a second one ends at once"
            if is_first_to_say(what):
                say(what, sys.stderr)

    def look(self) -> None:
        """Where another process has failed, this one waits for it in vain."""
        if not has_begun() and stop_requests.taking() == "after the step":
            self._is_hopeless(signal.SIGTERM)

    def _is_hopeless(self, number: signal.Signals) -> bool:
        if reported() is None and not has_missing_sibling():
            return False
        stop_requests.take_no_more()
        os.kill(os.getpid(), number)
        return True


def _end_now(number: int) -> SystemExit:
    """Say once for all processes what ends them; not where one has failed, which is why."""
    name = signal.Signals(number).name
    found = reported()
    failed = found is not None and not found.is_signal
    if stop_requests.taking() == "at once" and not failed and not has_missing_sibling():
        what = f"stopped by {name} before its next step: the same command starts it again"
        if is_first_to_say(what):
            say(what, sys.stderr)
        write_for_torchrun(what)
        return stop_requests.Stopped(name)
    what = f"stopped by {name}"
    if found is None:
        report(what, is_signal=True)
    elif failed:
        write_for_torchrun(f"rank {found.rank} ended before: {found.what}", is_first=False)
        return SystemExit(128 + number)
    if is_first_to_say(what):
        torchrun = "; if nobody sent it, torchrun did: its summary names the process that ended"
        say(what + (torchrun if is_under_torchrun() else ""), sys.stderr)
    return SystemExit(128 + number)


def _forget_in_workers() -> None:
    """A terminal sends Ctrl-C to workers, too, and a scheduler its notice: they leave it to the
    process that ends them."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
