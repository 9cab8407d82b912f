"""When and how a training is saved: in the background, kept few; or whole before it goes on.

Checkpoints are of one format, which any layout reads. A `quick` one, due every so often, is removed
when newer ones are there; a `portable` one (`checkpoint.keep_every`, the end of a run, on demand)
stays. `progress.json` says which it is.
"""

from __future__ import annotations

import datetime
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from nvlm import phases, platform
from nvlm.disk_space import size_text
from nvlm.errors import CheckpointError, ConfigError, NvlmError, TrainingError
from nvlm.megatron.staged_state import Stage
from nvlm.parallel.agreement import MEETING_TIMEOUT, Channel
from nvlm.parallel.groups import broadcast_object
from nvlm.platform.base import HOST_BACKEND
from nvlm.printing import say
from nvlm.train.best import best_so_far, is_better, measured_value
from nvlm.train.checkpoint import checkpoints_folder
from nvlm.train.events import note_event
from nvlm.train.ownership import Ownership
from nvlm.train.retention import remove_leftovers
from nvlm.train.save_times import SaveTimes
from nvlm.train.training import Training

Kind = Literal["quick", "portable"]
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class _Write:
    """A save that another thread writes."""

    step: int
    held_seconds: float  # for which training waited, but for the next update
    copy_seconds: float  # for which updates of the training had waited before
    started: float
    seconds: float = 0.0
    thread: threading.Thread | None = None
    saved: Path | None = None
    error: BaseException | None = None


class Saver:
    """Saves one training; every rank makes one, and calls the same methods after the same steps.

    Use `saving`.
    """

    def __init__(self, training: Training, ownership: Ownership | None, console: Console):
        self._training, self._ownership, self._console = training, ownership, console
        self._wanted = training.config.checkpoint
        self._folder = checkpoints_folder(training.config)
        parallel = training.parallel
        self._times = SaveTimes(self._wanted, training.step, parallel.is_main)
        self._write: _Write | None = None
        self._stage = Stage(_host_buffer)
        self._channel: Channel | None = None
        # Of the main rank, which decides: the best value, and what was measured after which step.
        self._best = best_so_far(self._folder, self._wanted) if parallel.is_main else None
        self._measured: tuple[int, dict[str, float]] = (0, {})
        self._new_best_at = 0
        self.longest_seconds: float | None = None  # that a save of this process took
        # The last write in the background failed: the next one is not left to it.
        self._has_failed = False
        if parallel.is_main:
            for name in remove_leftovers(self._folder):
                say(f"{self._folder / name}: half-written by a run that was killed, removed")

    def is_writing(self) -> bool:
        """Whether a save is under way, for which the next one waits."""
        return self._write is not None and _is_alive(self._write)

    def due(self) -> bool:
        """Whether a checkpoint is to be begun after this step, which is not the last one.

        Raises:
            NvlmError: one that was written meanwhile failed for good, see `finish`.
        """
        if self._write is not None and not _is_alive(self._write):
            self._settle()
        step = self._training.step
        if step == self._training.config.train.steps:
            return False
        # All ranks come to both: they may have to agree.
        return self._times.is_due(step) or self._new_best_at == step

    def observe(self, record: Mapping[str, float] | None) -> None:
        """Hear what was measured of the training as it is now, before `due` is asked.

        Args:
            record: names and numbers, such as `{"validation/loss": 2.31}`; that of rank 0 counts.
                None, on all ranks: nothing was measured after this step.

        Raises:
            ConfigError: what `checkpoint.best` names is not in it.
        """
        if record is None or self._wanted.best is None:
            return
        answer: bool | ConfigError | None = None
        step = self._training.step
        if self._training.parallel.is_main:
            try:
                value = measured_value(self._wanted, record)
                answer = is_better(value, self._best, self._wanted)
                self._measured = (step, {self._wanted.best: value})
                self._best = value if answer else self._best
            except ConfigError as error:
                answer = error
        answer = broadcast_object(answer)
        if isinstance(answer, ConfigError):
            raise answer
        if answer:
            self._new_best_at = step

    def save(self, kind: Kind = "quick", wait: bool = False) -> None:
        """Save the training as it is now, which may have been done already.

        Training goes on as soon as its state is copied, and waits before that for a write that has
        not ended. Where the configuration says so, after a write that failed, and with `wait` it
        goes on when all is written.

        Raises:
            CheckpointError: it could not be written. In the background that is said, and the next
                save is not left to the background.
            TrainingError: a parameter is not finite, or another run owns the folder now.
        """
        started = time.perf_counter()
        self.finish()
        training = self._training
        if training.last_saved == training.step:
            return
        self._times.restart(training.step)
        notes = self._notes(kind)
        if not self._wanted.background or wait or self._has_failed:
            saved = training.save(notes, self._check)
            self._has_failed = False
            seconds = time.perf_counter() - started
            self._tell(saved, seconds, seconds, f"saved {saved} in {seconds:.1f} s")
            return
        write = training.begin_save(self._stage, notes, self._own_channel(), self._check)
        held = time.perf_counter() - started
        begun = _Write(training.step, held, training.copies.seconds, started)

        def run() -> None:
            try:
                begun.saved = write()
            except BaseException as error:  # torch's is none of Exception; all are raised again
                begun.error = error
            begun.seconds = time.perf_counter() - started

        # Not waited for where the process ends: `saving` waits where that makes sense.
        begun.thread = threading.Thread(target=run, name="nvlm-save", daemon=True)
        self._write = begun
        begun.thread.start()

    def finish(self) -> None:
        """Wait until what was begun is written.

        Raises:
            NvlmError: a parameter is not finite, or another run owns the folder now.
        """
        if self._write is not None and _is_alive(self._write):
            phases.enter(phases.SAVING)
        while self._write is not None and _is_alive(self._write):
            assert self._write.thread is not None
            self._write.thread.join(_SECONDS_BETWEEN_LOOKS)
        if self._write is not None:
            self._settle()

    def end(self) -> None:
        """Leave a checkpoint of the last step, for good."""
        self.save("portable", wait=True)

    def _settle(self) -> None:
        """Say how a write ended, or raise what it raised."""
        write, self._write = self._write, None
        assert write is not None
        if write.error is None:
            self._training.last_saved = write.step
            self._has_failed = False
            held = write.held_seconds + self._training.copies.seconds - write.copy_seconds
            text = f"saved {write.saved} in {write.seconds:.1f} s, "
            text += f"of which training waited {held:.2f} s"
            assert write.saved is not None
            self._tell(write.saved, write.seconds, held, text)
            return
        if not isinstance(write.error, CheckpointError):
            raise write.error
        self._has_failed = True
        self._new_best_at = 0
        if self._training.parallel.is_main:
            self._best = best_so_far(self._folder, self._wanted)
            text = f"{write.error}; training goes on from step {self._training.step}, the "
            text += "checkpoint before stays; the next one has to be written, or ends the run"
            say(text, sys.stderr)
            with suppress(OSError):  # the disk is full
                note_event(self._training.config.run.dir, "save_failed", write.step, text)

    def _notes(self, kind: Kind) -> dict[str, Any]:
        step, kept_every = self._training.step, self._wanted.keep_every
        if kept_every is not None and step % kept_every == 0:
            kind = "portable"
        notes: dict[str, Any] = {"kind": kind}
        if self._measured[0] == step:
            notes |= {"measured": self._measured[1], "best_is": self._wanted.best_is}
        return notes | ({"is_best": True} if self._new_best_at == step else {})

    def _check(self) -> None:
        if self._ownership is not None:
            self._ownership.check()

    def _own_channel(self) -> Channel:
        """Of the threads that write, which speak while the steps' own messages are under way."""
        if self._channel is None:
            timeout = MEETING_TIMEOUT + datetime.timedelta(minutes=10)
            group = dist.new_group(backend=HOST_BACKEND, timeout=timeout)
            self._channel = Channel("saves", cast("dist.ProcessGroup", group))
        return self._channel

    def _tell(self, saved: Path, seconds: float, held: float, text: str) -> None:
        self.longest_seconds = max(seconds, self.longest_seconds or 0.0)
        self._console.print(text, markup=False, highlight=False)
        step, folder = int(saved.name.removeprefix("step_")), self._training.config.run.dir
        note_event(folder, "save", step, text, seconds=round(seconds, 3), held=round(held, 3))


def _host_buffer(num_bytes: int) -> Tensor:
    try:
        return platform.current().host_buffer(num_bytes)
    except (MemoryError, RuntimeError) as error:
        raise TrainingError(
            f"a save in the background takes {size_text(num_bytes)} of this process's host memory, "
            "which cannot be had: set checkpoint.background=false"
        ) from error


def _is_alive(write: _Write) -> bool:
    return write.thread is not None and write.thread.is_alive()


@contextmanager
def saving(training: Training, ownership: Ownership | None, console: Console) -> Iterator[Saver]:
    """A `Saver`; what it has begun is written when the block is left, also after an error.

    The other ranks' threads go on writing when a rank has failed, so that it is worth waiting.
    """
    saver = Saver(training, ownership, console)
    try:
        yield saver
    except BaseException as error:
        write = saver._write
        if write is not None and _is_alive(write):
            name = f"step_{write.step:08d}"
            if training.parallel.is_main:
                say(f"{type(error).__name__}: the run ends once {name} is written", sys.stderr)
            phases.enter(phases.SAVING)
            while _is_alive(write) and write.thread is not None:
                write.thread.join(_SECONDS_BETWEEN_LOOKS)
            if isinstance(write.error, NvlmError) and training.parallel.is_main:
                say(str(write.error), sys.stderr)
        raise
    saver.finish()
