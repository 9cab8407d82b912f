"""What a process of a training was doing when it failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nvlm.batch import StepBatch
from nvlm.errors import NvlmError
from nvlm.failures import end_early
from nvlm.printing import listed
from nvlm.train.training import Training

_MOST_KEYS = 40


@dataclass
class Work:
    """What this process does. `batch` is its part of the step; None: it is being read."""

    training: Training
    batch: StepBatch | None = None

    def __str__(self) -> str:
        parallel, step = self.training.parallel, self.training.step
        place = (
            f"rank {parallel.rank} (tensor rank {parallel.tensor_rank}, pipeline stage "
            f"{parallel.pipeline_rank}, data rank {parallel.data_rank})"
        )
        if self.batch is None:
            return f"while {place} read the samples of step {step + 1}"
        keys = [key for batch in self.batch.micro_batches for key in batch.sample_keys]
        return f"in step {step} on {place}; its samples: {listed(keys, _MOST_KEYS) or 'none'}"


@contextmanager
def at_work(training: Training) -> Iterator[Work]:
    """Add to what is raised within the block where that was, and say it at once.

    Errors for users that come out of a step are raised on all processes alike and name what they
    are about; what goes wrong in reading is found by one.
    """
    work = Work(training)
    try:
        yield work
    except Exception as error:
        if work.batch is None or not isinstance(error, NvlmError):
            error.add_note(str(work))
        end_early(error)
        raise
