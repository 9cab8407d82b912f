"""What a run says: one writer for its files, its trackers and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from nvlm.batch import SkippedSample
from nvlm.config.schema import RunConfig
from nvlm.data.loading.training_data import TrainingData
from nvlm.train.events import note_event
from nvlm.train.metrics import step_record
from nvlm.train.run_folder import BETWEEN_STEPS_FILE, METRICS_FILE, open_run_folder
from nvlm.train.sinks import open_json_lines, open_trackers
from nvlm.train.skipped_file import SkippedFile
from nvlm.train.step_line import TimeLeft, print_step
from nvlm.train.training import StepTaken, Training

_MAX_FAILURE = 300  # characters of an event


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
            self._say(note)
        self._time_left = TimeLeft()
        self._trackers = open_trackers(config, resumed_step, self._say)

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
        self._time_left.add_step(record["seconds"])
        if step % self._config.log.every == 0 or step == self._config.train.steps:
            steps = self._config.train.steps
            left = self._time_left.seconds(steps - step)
            print_step(self._console, step, steps, record, left)

    def write_between(self, step: int, numbers: dict[str, float]) -> None:
        """What was measured after `step` and before the next: validation, a checkpoint's seconds.

        `metrics.jsonl` has one line per step; these have a file of their own.
        """
        for sink in (self._between, *self._trackers):
            sink.write(step, numbers)

    def name_skipped(self, step: int, skipped: list[SkippedSample]) -> None:
        """Add samples to `skipped.jsonl`."""
        self._skipped.add(step, skipped)

    def close(self, failed: bool = False) -> None:
        self._skipped.close()
        for sink in (self._metrics, self._between, *self._trackers):
            sink.close(failed)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


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
    except BaseException as error:
        if isinstance(error, Exception):
            with suppress(OSError):  # it may be the disk that failed
                text = " ".join(str(error).split())[:_MAX_FAILURE]
                note_event(training.config.run.dir, "failure", training.step, text)
        # Who was asked to stop ends with a `SystemExit`.
        log.close(failed=not isinstance(error, SystemExit))
        raise
    log.close()
