"""How a training stops as asked: what asks it besides signals, and what it leaves behind.

All ranks stop after the same step, because requests are added up with that step's counts. Only the
main process looks for the file of `nvlm stop` and at the clock.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from nvlm import stop_requests
from nvlm.ending import begin, is_program, leave_soon
from nvlm.parallel.agreement import meet
from nvlm.reports import write_for_torchrun
from nvlm.run_checkpoints import CHECKPOINTS_FOLDER, list_steps
from nvlm.stop_requests import COMMAND, STOPPED, TIME_LIMIT, Stopped
from nvlm.train.events import last_event, note_event, read_events
from nvlm.train.ownership import Ownership
from nvlm.train.saver import Saver
from nvlm.train.training import StepTaken, Training

_SECONDS_BETWEEN_LOOKS = 1.0
# Of these many steps the longest is what the next one may take.
_NUM_STEPS = 100
# Before a save was measured: this share of the limit, but not more than so long.
_SHARE_FOR_FIRST_SAVE = 0.05
_MOST_SECONDS_FOR_FIRST_SAVE = 60.0
_JOB = "TORCHELASTIC_RUN_ID"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
# torchrun with `--max-restarts` takes every code but 0 for a failure, and starts the processes
# again. It sends the other signals itself, when it starts them again with more machines.
_FOR_ALL_ATTEMPTS = (COMMAND, TIME_LIMIT, signal.SIGUSR1.name)


class Clock:
    """When the last step has to begin so that it, and its save, end within the limit.

    Args:
        limit_seconds: since the process started; None: no limit.
    """

    def __init__(self, limit_seconds: float | None, started: float):
        self._limit, self._started = limit_seconds, started
        self._steps: deque[float] = deque(maxlen=_NUM_STEPS)
        self._last: float | None = None

    def is_last_step(self, now: float, save_seconds: float | None, num_saves: int = 1) -> bool:
        """To be called before every step: whether there is no time for one more after it.

        Args:
            save_seconds: of the longest save that is known of; None: none is.
            num_saves: that follow each other at the end; one may be under way.
        """
        if self._last is not None:
            self._steps.append(now - self._last)
        self._last = now
        if self._limit is None:
            return False
        guess = min(_MOST_SECONDS_FOR_FIRST_SAVE, _SHARE_FOR_FIRST_SAVE * self._limit)
        save = guess if save_seconds is None else save_seconds
        needed = 2 * max(self._steps, default=0.0) + num_saves * save
        return now - self._started + needed > self._limit


class Requests:
    """Looks for what asks a training to stop. Use `taking_requests`."""

    def __init__(self, training: Training, ownership: Ownership | None, saver: Saver):
        run = training.config.run
        limit = None if run.max_minutes is None else 60 * run.max_minutes
        self._training, self._saver = training, saver
        self._earlier_saves = _known_save_seconds(run.dir) if ownership and limit else None
        self._file = ownership and ownership.stop_file
        self._clock = Clock(limit, _process_start()) if ownership else None
        self._last_look = 0.0

    def look(self) -> None:
        """To be called before every step. Costs a look at the disk once a second."""
        if self._clock is None or self._file is None:
            return
        seconds = self._saver.longest_seconds or self._earlier_saves
        if self._clock.is_last_step(time.time(), seconds, 1 + self._saver.is_writing()):
            stop_requests.ask(TIME_LIMIT)
        if time.monotonic() - self._last_look >= _SECONDS_BETWEEN_LOOKS:
            with suppress(OSError):  # a disk that fails; training itself will say so
                if self._file.exists():
                    stop_requests.ask(COMMAND)
            self._last_look = time.monotonic()

    def reason_to_stop(self, taken: StepTaken) -> str | None:
        """Why the training stops after this step, on all ranks alike; None: it goes on, or ends."""
        is_last = self._training.step == self._training.config.train.steps
        return None if is_last else taken.result.stop_reason

    def stop(self, reason: str, console: Console) -> str:
        """Note and say that the training, which is saved, ends; returns the reason."""
        begin()
        step, config = self._training.step, self._training.config
        what = (
            f"stopped by {reason} after step {step} of {config.train.steps}, which is saved: the "
            "same command goes on"
        )
        note_event(config.run.dir, "stop", step, what, **_facts(reason))
        write_for_torchrun(f"{what} (exit code {STOPPED}: not a failure)")
        console.print(what, markup=False, highlight=False)
        return reason


@contextmanager
def taking_requests(
    training: Training, ownership: Ownership | None, saver: Saver
) -> Iterator[Requests]:
    """Within the block requests to stop are taken after a step, no longer at once."""
    config, first = training.config, training.step
    requests = Requests(training, ownership, saver)
    kind = "resume" if first else "start"
    note_event(config.run.dir, kind, first, f"resumed after step {first}" if first else "started")
    with stop_requests.taken("after the step"):
        yield requests
    if training.step == config.train.steps:
        note_event(config.run.dir, "end", training.step, f"all {training.step} steps are done")


def end_together() -> None:
    """Wait for all ranks to have closed what they write: torchrun ends those that are not first."""
    meet("closing the run's files")
    if is_program():
        for number in stop_requests.ASKING:
            signal.signal(number, signal.SIG_IGN)
        leave_soon(STOPPED)


@contextmanager
def stopping_at_once(run_dir: Path | str) -> Iterator[None]:
    """Within the block, before the first step, requests end the run: there is nothing to save.

    Raises:
        Stopped: torchrun has started the processes again after the run had stopped as asked.
    """
    last = last_event(run_dir)
    if last is not None and last.kind == "stop" and int(os.environ.get(_RESTARTS, "0")):
        reason = last.fields.get("reason")
        if last.fields.get("job") == os.environ[_JOB] and reason in _FOR_ALL_ATTEMPTS:
            write_for_torchrun(last.text)
            raise Stopped(reason)
    try:
        with stop_requests.taken("at once"):
            yield
    except Stopped as stop:
        what = f"stopped by {stop.reason} before its next step"
        with suppress(OSError):  # the folder is not made yet
            saved = list_steps(Path(run_dir) / CHECKPOINTS_FOLDER)
            step = saved[0][0] if saved else 0
            note_event(run_dir, "stop", step, what, **_facts(stop.reason))
        raise


def _facts(reason: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"reason": reason, "exit_code": STOPPED}
    if _JOB in os.environ:
        facts["job"] = os.environ[_JOB]
    return facts


def _known_save_seconds(run_dir: str) -> float | None:
    """Of the run's saves so far, the longest of the last few."""
    saves = [event.fields.get("seconds") for event in read_events(run_dir) if event.kind == "save"]
    return max((seconds for seconds in saves[-5:] if isinstance(seconds, float)), default=None)


def _process_start() -> float:
    import psutil

    return psutil.Process().create_time()
