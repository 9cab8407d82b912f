"""How far `nvlm generate` is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nvlm.printing import new_console, say

_SECONDS_BETWEEN_LINES = 30.0


class AskProgress:
    """Context: shows on standard error the questions that are done, their rate and the time left.

    With several replicas these are the questions of the first one.
    """

    def __init__(self, num_questions: int, num_replicas: int, is_shown: bool):
        self._total = num_questions
        self._done = 0
        self._tokens = 0
        self._errors = 0
        self._start = self._said = time.monotonic()
        self._of = "" if num_replicas == 1 else f"replica 1 of {num_replicas}: "
        console = new_console(stderr=True)
        self._is_plain = is_shown and not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not is_shown or self._is_plain,
        )
        self._task = self._bar.add_task(f"{self._of}answering", total=num_questions, rate="")

    def advance(self, num_tokens: int, has_failed: bool) -> None:
        """One more question has its row."""
        self._done += 1
        self._tokens += num_tokens
        self._errors += has_failed
        self._bar.update(self._task, completed=self._done, rate=self._rate())
        now = time.monotonic()
        if self._is_plain and now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            say(self._line(), sys.stderr)

    def _line(self) -> str:
        errors = f", {self._errors:,} with an error" if self._errors else ""
        seconds = time.monotonic() - self._start
        left = seconds / self._done * (self._total - self._done)
        return (
            f"{self._of}{self._done:,} of {self._total:,} done{errors}; {self._rate()}; "
            f"{_duration(left)} left"
        )

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{self._done / seconds:,.1f} questions/s, {self._tokens / seconds:,.0f} tokens/s"

    def __enter__(self) -> AskProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._is_plain and self._done and kind is None:
            say(self._line(), sys.stderr)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if minutes < 120
        else (f"{minutes / 60:.1f} h")
    )
