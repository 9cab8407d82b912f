"""Runs the demo's steps as separate commands, shows their progress, and goes on where it stopped.

What was done is noted in `steps.json`: a step is finished when its command ended well, its outputs
are there, and no step before it had to run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from nvlm.errors import NvlmError
from nvlm.files import write_text
from nvlm.parallel.orphans import ENDS_WITH

STATE_FILE = "steps.json"
_NUM_LOG_LINES_SHOWN = 25
_SECONDS_BETWEEN_LOOKS = 0.3
# How far a running step is: done, total, and what to show after the bar.
Look = tuple[int, int, str]


@dataclass(frozen=True)
class Step:
    """One command. `arguments` are those of the program that `program` names."""

    name: str  # short and unique: the log file's name
    title: str
    program: str  # nvlm, torchrun or python
    arguments: list[str]
    outputs: list[Path]  # exist when the step is done
    resumes: bool = False  # the same command goes on where it was stopped
    look: Callable[[], Look] | None = None  # None: a bar without end

    @property
    def shown_command(self) -> str:
        """As a person types it."""
        return shlex.join([self.program, *self.arguments])

    @property
    def command(self) -> list[str]:
        """With this Python, whatever PATH says."""
        module = {"nvlm": ["-m", "nvlm"], "torchrun": ["-m", "torch.distributed.run"], "python": []}
        return [sys.executable, *module[self.program], *self.arguments]


class StepRunner:
    """Runs steps in the order of the calls to `run`."""

    def __init__(self, root: Path, folder: Path, environment: Mapping[str, str], console: Console):
        """`root`: where state and logs go; `folder`: the working directory of the commands."""
        self.root = root
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._console = console
        self._state_path = root / STATE_FILE
        self._state: dict[str, dict] = {}
        if self._state_path.is_file():
            self._state = json.loads(self._state_path.read_text())
        self._rerun = False

    def run(self, step: Step, position: str) -> float:
        """Run `step` unless it is finished; returns the seconds its command took.

        Raises:
            NvlmError: the command failed; the end of its log was printed.
        """
        known = self._state.get(step.name, {})
        same = known.get("command") == step.shown_command and not self._rerun
        has_outputs = all(self._path(output).exists() for output in step.outputs)
        if same and known.get("finished") and has_outputs:
            self._console.print(
                f"[bold]{position} {step.title}[/bold]: done before, in {known['seconds']:.0f} s"
            )
            return known["seconds"]
        self._rerun = True
        if not (same and step.resumes):
            for output in step.outputs:
                _remove(self._path(output))
            known = {}
        earlier_seconds = known.get("seconds", 0.0)
        self._console.print(f"[bold]{position} {step.title}[/bold]")
        self._console.print(f"  {step.shown_command}", style="dim", highlight=False, markup=False)
        self._note(step, finished=False, seconds=earlier_seconds)
        started = time.perf_counter()
        try:
            exit_code = self._execute(step)
        finally:
            seconds = earlier_seconds + time.perf_counter() - started
            self._note(step, finished=False, seconds=seconds)
        if exit_code:
            self._fail(step, exit_code)
        missing = [output for output in step.outputs if not self._path(output).exists()]
        if missing:
            raise NvlmError(f"step '{step.title}' ended well but did not write {missing[0]}")
        self._note(step, finished=True, seconds=seconds)
        return seconds

    def log_path(self, step: Step) -> Path:
        return self.root / "logs" / f"{step.name}.log"

    def _path(self, path: Path) -> Path:
        return self._folder / path

    def _note(self, step: Step, finished: bool, seconds: float) -> None:
        self._state[step.name] = {
            "command": step.shown_command,
            "finished": finished,
            "seconds": seconds,
        }
        write_text(self._state_path, json.dumps(self._state, indent=1))

    def _execute(self, step: Step) -> int:
        log = self.log_path(step)
        log.parent.mkdir(parents=True, exist_ok=True)
        progress = Progress(
            TextColumn("  "),
            SpinnerColumn(),
            BarColumn(bar_width=30),
            MofNCompleteColumn() if step.look else TextColumn(""),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
        )
        with log.open("w") as file, progress, _ending_signals_raise():
            bar = progress.add_task("", total=None)
            process = subprocess.Popen(
                step.command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                env={**self._environment, ENDS_WITH: str(os.getpid())},
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    self._show(step, progress, bar)
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            except BaseException:
                _stop(process)
                raise
            self._show(step, progress, bar)
            if step.look is None and process.returncode == 0:
                progress.update(bar, total=1, completed=1)
        return process.returncode

    def _show(self, step: Step, progress: Progress, bar) -> None:
        if step.look is None:
            return
        done, total, text = step.look()
        progress.update(bar, completed=done, total=total, description=text)

    def _fail(self, step: Step, exit_code: int) -> None:
        log = self.log_path(step)
        lines = log.read_text(errors="replace").splitlines()[-_NUM_LOG_LINES_SHOWN:]
        self._console.rule(f"end of {log}", style="red")
        for line in lines:
            self._console.print(line, markup=False, highlight=False)
        self._console.rule(style="red")
        raise NvlmError(
            f"step '{step.title}' failed with exit code {exit_code}; its log is {log}; "
            "running the demo again continues from there"
        )


def count_lines(paths: Sequence[Path]) -> int:
    return sum(path.read_bytes().count(b"\n") for path in paths if path.is_file())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _ending_signals_raise() -> Iterator[None]:
    """Let a closed terminal and `kill` end the demo as Ctrl-C does: with its commands."""

    def interrupt(number: int, _) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {name: signal.signal(name, interrupt) for name in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _stop(process: subprocess.Popen) -> None:
    """End the command and all that it started: they are one process group."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
