"""What a run says: one writer for its files, its trackers and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from nvlm.batch import SkippedSample
from nvlm.config.schema import RunConfig
from nvlm.data.loading.training_data import TrainingData
from nvlm.train.metrics import step_record
from nvlm.train.run_folder import BETWEEN_STEPS_FILE, METRICS_FILE, open_run_folder
from nvlm.train.sinks import open_json_lines, open_trackers
from nvlm.train.skipped_file import SkippedFile
from nvlm.train.step_line import step_line
from nvlm.train.training import StepTaken, Training


class RunLog:
    """Takes all numbers of a run. Only its main process makes one.

    On resume, records of steps after `resumed_step` are moved: see `open_records`.
    """

    def __init__(self, config: RunConfig, resumed_step: int, console: Console):
        folder = Path(config.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._console = console
        self._metrics, *notes = open_json_lines(folder / METRICS_FILE, resumed_step)
        self._between, between_note = open_json_lines(folder / BETWEEN_STEPS_FILE, resumed_step)
        self._skipped = SkippedFile(folder, resumed_step, console)
        for note in filter(None, [*notes, between_note, self._skipped.note]):
            console.print(note, markup=False, highlight=False)
        self._trackers = open_trackers(config, resumed_step)

    def write_step(
        self, training: Training, taken: StepTaken, seconds: float, data_seconds: float
    ) -> None:
        """Record the step that `training` has just taken, in so many seconds, waiting included."""
        record = step_record(training, taken, seconds, data_seconds)
        self.write(training.step, record)
        self.name_skipped(training.step, taken.skipped)

    def write(self, step: int, record: dict[str, float]) -> None:
        """A step's numbers, and its line on the terminal."""
        for sink in (self._metrics, *self._trackers):
            sink.write(step, record)
        if step % self._config.log.every == 0 or step == self._config.train.steps:
            self._console.print(step_line(step, self._config.train.steps, record), markup=False)

    def write_between(self, step: int, numbers: dict[str, float]) -> None:
        """What was measured after `step` and before the next: validation, a checkpoint's seconds.

        `metrics.jsonl` has one line per step; these have a file of their own.
        """
        for sink in (self._between, *self._trackers):
            sink.write(step, numbers)

    def name_skipped(self, step: int, skipped: list[SkippedSample]) -> None:
        """Add samples to `skipped.jsonl`."""
        self._skipped.add(step, skipped)

    def close(self) -> None:
        self._skipped.close()
        for sink in (self._metrics, self._between, *self._trackers):
            sink.close()


@contextmanager
def open_log(
    training: Training, data: TrainingData | None, console: Console
) -> Iterator[RunLog | None]:
    """The writer of the run's numbers, on its main process; names what the index rejects."""
    if not training.parallel.is_main:
        yield None
        return
    assert data is not None
    for note in open_run_folder(training.config, training.step):
        console.print(note, markup=False, highlight=False)
    log = RunLog(training.config, training.step, console)
    try:
        if training.step == 0 or data.changes:
            log.name_skipped(training.step, data.rejected())
        yield log
    finally:
        log.close()
