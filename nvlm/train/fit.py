"""The training loop, top to bottom."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from nvlm import platform
from nvlm.config import RunConfig
from nvlm.errors import DataError
from nvlm.parallel.broadcast import next_step_batch
from nvlm.parallel.groups import Parallel, initialize, is_main_process, leaving_groups
from nvlm.parallel.hangs import collective_timeout
from nvlm.parallel.tiles import own_share
from nvlm.plan.layout import with_stage_layers
from nvlm.printing import new_console
from nvlm.stop_requests import Stopped
from nvlm.train.log import open_log
from nvlm.train.ownership import Ownership, own_run_folder, share
from nvlm.train.saver import saving
from nvlm.train.skips import check_run
from nvlm.train.start import Start, begin, confirm, prepare
from nvlm.train.stopping import end_together, stopping_at_once, taking_requests
from nvlm.train.validation import Validation
from nvlm.train.work import at_work


def train(
    config: RunConfig, allow_data_change: bool = False, ownership: Ownership | None = None
) -> None:
    """Run the stage that `config` describes to its last step, resuming where the run stopped.

    Args:
        allow_data_change: resume although the data or what decides their order have changed; see
            `Planner.continue_from`.
        ownership: of the run folder, on the main process, where it was taken before.

    Raises:
        NvlmError: something the user can put right; nothing was changed on disk before the first
            step, except the sample index.
        Stopped: it was asked to stop, and is saved where it had taken a step.
    """
    if ownership is None and is_main_process():
        with own_run_folder(Path(config.run.dir)) as own:
            train(config, allow_data_change, own)
        return
    with stopping_at_once(config.run.dir):
        config = with_stage_layers(config)
        start = prepare(config, allow_data_change)
        with leaving_groups():
            parallel = initialize(config, timeout=collective_timeout(config.run.hang_minutes))
            share(ownership)
            reason = fit(config, parallel, start, ownership)
            if reason:
                end_together()
    if reason:
        raise Stopped(reason)


def fit(
    config: RunConfig, parallel: Parallel, start: Start, ownership: Ownership | None = None
) -> str | None:
    """Train from `start` to the last step; process groups may serve several trainings in turn.

    Returns:
        what asked the training to stop before its last step, if something did; it is saved.

    Raises:
        NvlmError: something the user can put right; the last checkpoint is whole.
    """
    # A terminal's lines break between words; a file's do not break.
    console = new_console(quiet=not parallel.is_main, soft_wrap=not sys.stdout.isatty())
    start = confirm(start, config, console)
    training = begin(config, parallel, start, console)
    if training.step >= config.train.steps:
        console.print(f"{config.run.dir}: all {config.train.steps} steps are done")
        return None
    own = own_share(parallel) if config.parallel.shares_tiles else None
    batches = start.data and start.data.batches(
        parallel.data_rank, parallel.data_size, platform.current().copied_ahead, own
    )
    reason = None
    with (
        open_log(training, start.data, console) as log,
        at_work(training) as work,
        saving(training, ownership, console) as saver,
        taking_requests(training, ownership, saver) as requests,
    ):
        validation = Validation(training, start, console)
        while training.step < config.train.steps and not reason:
            requests.look()
            started = time.perf_counter()
            work.begin_reading()
            batch = next_step_batch(batches, parallel, config.parallel.shares_tiles)
            work.batch = batch
            data_seconds = time.perf_counter() - started
            if batch is None:
                break
            taken = training.take_step(batch)
            if log:
                log.write_step(training, taken, time.perf_counter() - started, data_seconds)
            seen = training.counters
            check_run(seen.skipped_by, seen.samples, config.data.max_skipped_share, taken.skipped)
            measured = validation.after_step()
            if log and measured:
                log.write_between(training.step, measured)
            saver.observe(measured)
            reason = requests.reason_to_stop(taken)
            if reason or saver.due():
                saver.save(wait=reason is not None)
        saver.end()
        if reason:
            return requests.stop(reason, console)
    if training.step < config.train.steps:
        raise DataError(
            f"every source has reached its max_epochs: the data ended at step {training.step} of "
            f"train.steps {config.train.steps}, which is saved"
        )
    return None
