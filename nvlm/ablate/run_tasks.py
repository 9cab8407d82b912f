"""Runs a grid's tasks as processes of their own, some side by side; one that fails holds up none
but those that need it.

Each is an ordinary `nvlm` command, so whatever ends it, or this process, the same grid goes on from
what is on the disk. A process ends within seconds of this one being killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nvlm import stop_requests
from nvlm.ablate.tasks import Task
from nvlm.parallel.orphans import ENDS_WITH
from nvlm.platform.environment import devices_of_slot
from nvlm.printing import printable, say
from nvlm.stop_requests import Stopped
from nvlm.train.ownership import STALE_SECONDS, find_owner

_SECONDS_BETWEEN_LOOKS = 0.2
_THREADS = "OMP_NUM_THREADS"
# Of a process that lived on for a moment after its grid was killed, or on another host.
_SECONDS_TO_WAIT_FOR_OWNER = STALE_SECONDS + 30
_MAX_ERROR = 300
# How nvlm says that a failure is its own (nvlm/failures.py).
_FAULT = "this is a fault of nvlm"
_LAST_LINES_BYTES = 20_000


class Process(Protocol):
    """What is used of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None: ...


@dataclass(frozen=True)
class Failure:
    """A task that ended with an error, or that could not begin for one that did."""

    task: Task
    error: str

    def __str__(self) -> str:
        return f"{self.task.name}: {self.error} ({self.task.log})"


@dataclass
class _Running:
    task: Task
    process: Process
    log_start: int  # bytes of the log before it
    slot: int
    started: float


Start = Callable[[Sequence[str], Mapping[str, str], Path], Process]


def start_process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """In a session of its own: what a terminal signals, this process passes on, once."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_tasks(
    tasks: Sequence[Task], num_jobs: int, num_processes: int, start: Start = start_process
) -> list[Failure]:
    """Do what is not done, `num_jobs` tasks at a time; returns what failed.

    Args:
        num_processes: of each task, under torchrun where there are several.
        start: starts a command, its output added to a log.

    Raises:
        ConfigError: there are devices, and too few for so many jobs.
        Stopped: this process was asked to; what ran has saved and ended.
    """
    environments = [_environment(slot, num_jobs, num_processes) for slot in range(num_jobs)]
    waiting = [task for task in tasks if not task.is_done()]
    left = {id(task) for task in waiting}
    failures: list[Failure] = []
    running: list[_Running] = []
    total, started = len(waiting), 0
    with stop_requests.taken("after the step"):
        while (waiting or running) and not stop_requests.asked():
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _end(one, left, failures)
            _hold_back(waiting, failures)
            ready = [task for task in waiting if not any(id(need) in left for need in task.needs)]
            free = sorted(set(range(num_jobs)) - {one.slot for one in running})
            for slot, task in zip(free, ready):
                waiting.remove(task)
                started += 1
                say(f"{started} of {total}: {task.name}")
                running.append(_begin(task, slot, environments[slot], num_processes, start))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if reason := stop_requests.asked():
            _stop(running)
            raise Stopped(reason)
    return failures


def _environment(slot: int, num_jobs: int, num_processes: int) -> dict[str, str]:
    environment = {**os.environ, ENDS_WITH: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    if num_jobs > 1:
        environment |= devices_of_slot(os.environ, slot, num_jobs, num_processes)
    if num_jobs * num_processes > 1 and _THREADS not in environment:
        cores = os.cpu_count() or 1
        environment[_THREADS] = str(max(1, cores // (num_jobs * num_processes)))
    return environment


def _begin(
    task: Task, slot: int, environment: Mapping[str, str], num_processes: int, start: Start
) -> _Running:
    _wait_for_owner(task.folder)
    task.log.parent.mkdir(parents=True, exist_ok=True)
    size = task.log.stat().st_size if task.log.exists() else 0
    command = [sys.executable, "-m", "nvlm", *task.arguments]
    if num_processes > 1:
        several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        command = [sys.executable, "-m", *several, "-m", "nvlm", *task.arguments]
    process = start(command, environment, task.log)
    return _Running(task, process, size, slot, time.monotonic())


def _wait_for_owner(folder: Path) -> None:
    """Whoever lives in the run's folder may be a process whose grid was killed just now."""
    deadline = time.monotonic() + _SECONDS_TO_WAIT_FOR_OWNER
    said = False
    while time.monotonic() < deadline and not stop_requests.asked():
        owner = None
        with suppress(OSError):
            owner = find_owner(folder)
        if owner is None or owner.gone is not None:
            return
        if not said:
            say(f"waiting for {folder}: {owner.who} is in it")
            said = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _end(one: _Running, left: set[int], failures: list[Failure]) -> None:
    code = one.process.poll()
    seconds = time.monotonic() - one.started
    if code == 0 and one.task.is_done():
        left.discard(id(one.task))
        say(f"done in {seconds:.0f} s: {one.task.name}")
        return
    error = _error_of(one, code)
    failures.append(Failure(one.task, error))
    say(f"failed after {seconds:.0f} s: {failures[-1]}", sys.stderr)


def _hold_back(waiting: list[Task], failures: list[Failure]) -> None:
    """Tasks that need one that failed fail with it."""
    failed = {id(failure.task): failure for failure in failures}
    for task in [*waiting]:
        cause = next((need for need in task.needs if id(need) in failed), None)
        if cause is not None:
            waiting.remove(task)
            failures.append(Failure(task, f"not begun: it needs {cause.name}, which failed"))
            failed[id(task)] = failures[-1]


def _error_of(one: _Running, code: int | None) -> str:
    """The first `error:` line of what the process said, or its last line."""
    with one.task.log.open("rb") as file:
        file.seek(max(one.log_start, one.task.log.stat().st_size - _LAST_LINES_BYTES))
        lines = file.read().decode(errors="backslashreplace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [at for at, line in enumerate(lines) if line.startswith("error: ")]
    said = lines[errors[0]].removeprefix("error: ") if errors else (lines or ["said nothing"])[-1]
    if errors and said.startswith(_FAULT) and errors[0]:
        said = lines[errors[0] - 1]  # the end of its stack trace
    ended = f"ended by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return printable(f"{ended}: {said}"[:_MAX_ERROR])


def _stop(running: list[_Running]) -> None:
    """Ask what runs to save and end, and wait for it."""
    for one in running:
        with suppress(ProcessLookupError):
            os.kill(one.process.pid, 15)
    for one in running:
        while one.process.poll() is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
