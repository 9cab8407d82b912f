"""A run in which nothing moves ends, and says which rank the others wait for.

Each process has a thread that looks every few seconds whether its training has gone on, and tells
the others, in the run's store, where it is. No collective is needed, and none is touched. When one
process has not moved for too long, all of them write a report, the lowest that answers says which
differs, and all end. What a thread cannot do while another one holds Python's lock, the timer of
`faulthandler` does: it writes the stacks without the lock.

Time in which this process was suspended does not count.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm import phases
from nvlm.ending import begin, has_begun, is_program, leave, released_at_end
from nvlm.files import write_text
from nvlm.launch import launched
from nvlm.parallel.groups import COLLECTIVE_TIMEOUT
from nvlm.parallel.hang_report import (
    REPORTS_FOLDER,
    Standing,
    look_closely,
    report_path,
    standing,
    write_report,
)
from nvlm.parallel.hang_verdict import explain
from nvlm.parallel.watch import silence_calls
from nvlm.printing import say
from nvlm.reports import (
    SECONDS_BETWEEN_LOOKS,
    hold_store,
    is_first_to_say,
    open_store,
    report,
    store_key,
    write_for_torchrun,
)

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_GONE = (OSError, RuntimeError, ImportError)
# What the run ends with: something outside nvlm (docs/exit_codes.md).
_EXIT_CODE = 2
# For the ranks that live to look into the store and write what they have to say.
_SECONDS_TO_ANSWER = 3 * SECONDS_BETWEEN_LOOKS
_SECONDS_TO_CONCLUDE = 15.0
# Stacks come from the timer where this process's thread could not look for so long.
_SECONDS_OF_GRACE = 2 * SECONDS_BETWEEN_LOOKS


@dataclass(frozen=True)
class Watched:
    """A training, for who watches it."""

    run_dir: Path
    hang_seconds: float
    thread: int  # that trains
    samples: Callable[[], Sequence[str]]  # keys of the present step, on this process
    note: Callable[[int, str], None]  # the verdict on a step, into the run's events

    @property
    def reports(self) -> Path:
        return self.run_dir / REPORTS_FOLDER


def collective_timeout(hang_minutes: float | None) -> timedelta:
    """How long collectives of a watched training may wait: longer than any phase that has some, so
    that the run's end says more than that a collective's time was up."""
    longest = phases.FIRST_STEP_PATIENCE * timedelta(minutes=hang_minutes or 0)
    return max(COLLECTIVE_TIMEOUT, longest + COLLECTIVE_TIMEOUT / 5)


@contextmanager
def watching_for_hangs(
    run_dir: Path,
    hang_seconds: float | None,
    samples: Callable[[], Sequence[str]],
    note: Callable[[int, str], None],
) -> Iterator[None]:
    """End the program when its training stands still for `hang_seconds` within the block.

    Does nothing for None, and where the process belongs to another program.
    """
    if hang_seconds is None or not is_program():
        yield
        return
    watched = Watched(run_dir, hang_seconds, threading.get_ident(), samples, note)
    watched.reports.mkdir(parents=True, exist_ok=True)
    stacks = _stacks_path(watched, launched().rank)
    stopped = threading.Event()
    with stacks.open("ab") as file, released_at_end(lambda: _remove_empty(stacks)):
        watch = threading.Thread(target=_watch, args=(watched, file, stopped), daemon=True)
        watch.start()
        try:
            with silence_calls(_call):
                yield
        finally:
            stopped.set()
            watch.join(SECONDS_BETWEEN_LOOKS)
            faulthandler.cancel_dump_traceback_later()


def _stacks_path(watched: Watched, rank: int) -> Path:
    return watched.reports / f"stacks_rank_{rank:04d}.txt"


def _remove_empty(stacks: Path) -> None:
    """Nothing was written: the run did not hang."""
    with suppress(OSError):
        if not stacks.stat().st_size:
            stacks.unlink()
        stacks.parent.rmdir()  # where it is empty


def _watch(watched: Watched, stacks, stopped: threading.Event) -> None:
    store: TCPStore | None = None
    number, quiet, looked = -1, 0.0, time.monotonic()
    # Lower ranks first: one call is enough.
    delay = min(launched().rank, 2) * SECONDS_BETWEEN_LOOKS
    limit = watched.hang_seconds * phases.patience()
    faulthandler.dump_traceback_later(limit + _SECONDS_OF_GRACE, file=stacks)
    with suppress(*_GONE):  # a process may stop before the first look
        store = open_store()
        if store is not None:
            _publish(store, standing(0.0, limit))
    while not stopped.wait(SECONDS_BETWEEN_LOOKS) and not has_begun():
        place, now = phases.here(), time.monotonic()
        passed, looked = min(now - looked, 2 * SECONDS_BETWEEN_LOOKS), now
        quiet = quiet + passed if place.number == number else 0.0
        number = place.number
        limit = watched.hang_seconds * phases.patience()
        until_late = max(limit - quiet, 0) + _SECONDS_OF_GRACE
        faulthandler.dump_traceback_later(until_late, file=stacks)
        own = standing(quiet, limit)
        is_late, is_called = quiet > limit + delay, False
        try:
            store = store or open_store()
            if store is not None:
                _publish(store, own)
                is_called = store.check([store_key("hang")])
                is_late = is_late and not _some_take_their_time(store, quiet)
        except _GONE:
            store = None
        if is_late or is_called:
            faulthandler.cancel_dump_traceback_later()
            _end(watched, own, store)


def _call(store: TCPStore) -> None:
    """Have all ranks report and end."""
    store.set(store_key("hang"), "")


def _some_take_their_time(store: TCPStore, quiet: float) -> bool:
    """Whether a rank is in something that may last longer, such as a checkpoint."""
    places = _published(store)
    return any(some.limit_seconds > quiet for some in places.values())


def _publish(store: TCPStore, own: Standing) -> None:
    store.set(store_key(f"place/{own.rank}"), json.dumps(asdict(own)))


def _published(store: TCPStore) -> dict[int, Standing]:
    found = {}
    for rank in range(launched().world_size):
        name = store_key(f"place/{rank}")
        if store.check([name]):
            found[rank] = Standing(**json.loads(store.get(name)))
    return found


def _end(watched: Watched, own: Standing, store: TCPStore | None) -> None:
    """Report, agree on what is said, and end this process."""
    begin()  # whatever else ends processes of the run has no say any more
    samples: Sequence[str] = ()
    with suppress(Exception):  # the training's thread may be changing what it reads
        samples = watched.samples()
    with suppress(Exception):
        own = look_closely(own, watched.thread)
    with suppress(OSError):  # such as the disk that everything waits for
        write_report(watched.reports, own, samples)
    try:
        if store is None:
            _conclude(watched, own, [own], {}, None)
        else:
            _agree(watched, own, store)
    except _GONE:
        _conclude(watched, own, [own], {}, None)
    hold_store()
    leave(_EXIT_CODE)


def _agree(watched: Watched, own: Standing, store: TCPStore) -> None:
    world_size = launched().world_size
    _call(store)
    store.set(store_key(f"hang/{own.rank}"), json.dumps(asdict(own)))
    store.add(store_key("hang/answers"), 1)
    deadline = time.monotonic() + _SECONDS_TO_ANSWER
    while store.add(store_key("hang/answers"), 0) < world_size and time.monotonic() < deadline:
        time.sleep(0.1)
    answered = [rank for rank in range(world_size) if store.check([store_key(f"hang/{rank}")])]
    # Said already where this process comes late, such as one that was stopped and continued.
    if own.rank == answered[0] and not store.check([store_key("hang/said")]):
        standings = [
            Standing(**json.loads(store.get(store_key(f"hang/{rank}")))) for rank in answered
        ]
        last = _published(store)
        silent = {rank: last.get(rank) for rank in range(world_size) if rank not in answered}
        _conclude(watched, own, standings, silent, store)
        store.set(
            store_key("hang/said"), json.dumps([asdict(some) for some in silent.values() if some])
        )
    deadline = time.monotonic() + _SECONDS_TO_CONCLUDE
    while not store.check([store_key("hang/said")]) and time.monotonic() < deadline:
        time.sleep(0.1)
    if store.check([store_key("hang/said")]):
        for some in json.loads(store.get(store_key("hang/said"))):
            _kill_neighbour(Standing(**some), own)
            _remove_empty(_stacks_path(watched, some["rank"]))


def _conclude(
    watched: Watched,
    own: Standing,
    standings: list[Standing],
    silent: dict[int, Standing | None],
    store: TCPStore | None,
) -> None:
    """Say what was found, and leave a report for those that cannot."""
    known = {rank: _last_seen(some, own) for rank, some in silent.items()}
    for rank, text in known.items():
        with suppress(OSError):
            stacks = _stacks_path(watched, rank)
            has_stacks = stacks.exists() and stacks.stat().st_size
            its = f"its stacks are in {stacks.name}" if has_stacks else "it wrote no stacks"
            path = report_path(watched.reports, rank, own.step)
            write_text(path, f"rank {rank} gives no sign of life: {text}\n{its}\n")
    if launched().world_size == 1:
        what = f"it is in {own.where} ({own.frame})"
    else:
        what = explain(standings, known)
        if store is None:
            what += "; the run's store does not answer, so of other ranks nothing is known"
    text = f"step {own.step}: nothing has moved for {_duration(own.seconds)}: {what}"
    report(text)
    if is_first_to_say(text):
        whose = f" [rank {own.rank}]" if own.rank else ""
        where = f"a report of each rank is in {watched.reports}"
        say(f"error: {text}{whose}\n  {where}; run.hang_minutes says how long", sys.stderr)
        write_for_torchrun(text)
        with suppress(OSError):
            watched.note(own.step, text)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"


def _last_seen(some: Standing | None, own: Standing) -> str:
    if some is None:
        return "it never came to its first step"
    seen = f"process {some.process} on {some.host}, last seen in {some.where}"
    return f"{seen}{_state_of(some, own)}"


def _state_of(some: Standing, own: Standing) -> str:
    """What the system says of a process on this machine."""
    import psutil

    if not _is_neighbour(some, own):
        return ""
    try:
        status = psutil.Process(some.process).status()
    except psutil.Error:
        return "; the process is gone"
    words = {
        psutil.STATUS_STOPPED: "it was stopped by a signal (SIGSTOP), and not continued",
        psutil.STATUS_TRACING_STOP: "a debugger holds it",
        psutil.STATUS_DISK_SLEEP: "it waits for a disk or a device (state D)",
        psutil.STATUS_ZOMBIE: "the process is gone",
        psutil.STATUS_RUNNING: "it computes without letting Python's other threads run",
    }
    return f"; {words.get(status, f'its state is {status}')}"


def _is_neighbour(some: Standing, own: Standing) -> bool:
    """Whether one launcher on this machine started both: numbers of processes mean the same."""
    import psutil

    if some.host != own.host or some.parent != own.parent:
        return False
    try:
        return psutil.Process(some.process).ppid() == own.parent
    except psutil.Error:
        return False


def _kill_neighbour(some: Standing, own: Standing) -> None:
    """A process that is stopped, or computes without end, hears no other signal."""
    if _is_neighbour(some, own):
        with suppress(OSError):
            os.kill(some.process, signal.SIGKILL)
