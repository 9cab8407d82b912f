"""What a process of a training was doing when it failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nvlm import phases
from nvlm.batch import StepBatch
from nvlm.errors import NvlmError
from nvlm.failures import end_early
from nvlm.parallel.hangs import watching_for_hangs
from nvlm.printing import listed
from nvlm.train.events import write_event
from nvlm.train.training import Training

_MOST_KEYS = 40


@dataclass
class Work:
    """What this process does. `batch` is its part of the step; None: it is being read."""

    training: Training
    batch: StepBatch | None = None

    def __str__(self) -> str:
        parallel, step = self.training.parallel, self.training.step
        context = f"context rank {parallel.context_rank}, " if parallel.context_size > 1 else ""
        place = (
            f"rank {parallel.rank} (tensor rank {parallel.tensor_rank}, pipeline stage "
            f"{parallel.pipeline_rank}, {context}data rank {parallel.data_rank})"
        )
        if self.batch is None:
            return f"while {place} read the samples of step {step + 1}"
        keys = listed(self.sample_keys(), _MOST_KEYS)
        return f"in step {step} on {place}; its samples: {keys or 'none'}"

    def begin_reading(self) -> None:
        """Of the next step's samples."""
        self.batch = None
        phases.begin_reading(self.training.step + 1)

    def sample_keys(self) -> list[str]:
        """Of this process's part of the step; none while it is being read."""
        micro_batches = self.batch.micro_batches if self.batch else []
        return [key for batch in micro_batches for key in batch.sample_keys]


@contextmanager
def at_work(training: Training) -> Iterator[Work]:
    """Add to what is raised within the block where that was, and say it at once; end what hangs.

    Errors for users that come out of a step are raised on all processes alike and name what they
    are about; what goes wrong in reading is found by one.
    """
    work = Work(training)
    run = training.config.run
    phases.begin_work(training.step + 1)

    def note_hang(step: int, text: str) -> None:
        write_event(run.dir, "hang", step, text)

    seconds = run.hang_minutes and 60 * run.hang_minutes
    try:
        with watching_for_hangs(Path(run.dir), seconds, work.sample_keys, note_hang):
            yield work
    except Exception as error:
        if work.batch is None or not isinstance(error, NvlmError):
            error.add_note(str(work))
        end_early(error)
        raise
