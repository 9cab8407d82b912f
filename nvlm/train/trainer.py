"""The training loop, top to bottom."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from nvlm import platform
from nvlm.batch import SkippedSample, StepBatch
from nvlm.checkpoint_files import (
    MANIFEST_FILE,
    changed,
    has_checksums,
    read_config,
    read_progress,
)
from nvlm.checkpoint_io import on_main_rank
from nvlm.config import RunConfig
from nvlm.config.checks import check_world_size
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.loading.loader import build_loader
from nvlm.data.order.planner import check_state, data_changes
from nvlm.errors import DataError
from nvlm.model.nvlm_d import build_model_chunks
from nvlm.model.parts.initialize import initialize_weights
from nvlm.parallel.broadcast import next_step_batch
from nvlm.parallel.groups import (
    Parallel,
    broadcast_object,
    initialize,
    is_main_process,
    shut_down,
    world_size_from_environment,
)
from nvlm.printing import new_console
from nvlm.run_checkpoints import Newest
from nvlm.train.checkpoint import (
    find_initial_weights,
    find_resume_point,
    load_training_state,
    load_weights,
    save_training_state,
)
from nvlm.train.diagnose import check_parameters
from nvlm.train.freezing import freeze, module_table, multipliers
from nvlm.train.metrics import MetricsWriter, print_module_table
from nvlm.train.optim import (
    build_optimizer,
    build_scheduler,
    learning_rate,
    wrap_data_parallel,
)
from nvlm.train.ownership import Ownership, own_run_folder, share
from nvlm.train.rates import rate_changes
from nvlm.train.run_folder import open_run_folder
from nvlm.train.skips import add_counts, check_index, check_run, count_skipped
from nvlm.train.step import train_step


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
    """
    if ownership is None and is_main_process():
        with own_run_folder(Path(config.run.dir)) as own:
            return train(config, allow_data_change, own)
    console = new_console(quiet=not is_main_process(), soft_wrap=True)
    resume_from, start_from, indexes = prepare(config, allow_data_change)
    parallel = initialize(config)
    try:
        share(ownership)
        resume_from = _check_contents(config, resume_from, indexes, allow_data_change, console)
        _train(config, parallel, resume_from, start_from, indexes, console, ownership)
    finally:
        shut_down()


def prepare(
    config: RunConfig, allow_data_change: bool = False
) -> tuple[Newest, Path | None, list[SourceIndex]]:
    """All that can be refused before a process group exists.

    Returns (checkpoint to resume from, checkpoint to take initial weights from, indexes).
    """
    check_world_size(config, world_size_from_environment())
    platform.current().resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )
    resume_from = find_resume_point(config)
    start_from = None if resume_from.checkpoint else find_initial_weights(config)
    indexes = open_indexes(config)
    _check_data(config, resume_from, indexes, allow_data_change)
    check_index(indexes, config.data.max_skipped_share)
    return resume_from, start_from, indexes


def _check_data(
    config: RunConfig, resume_from: Newest, indexes: list[SourceIndex], allow_data_change: bool
) -> None:
    if resume_from.checkpoint and not allow_data_change:
        progress = read_progress(resume_from.checkpoint)
        assert progress is not None
        check_state(config, indexes, progress["data_state"])


def _check_contents(
    config: RunConfig,
    resume_from: Newest,
    indexes: list[SourceIndex],
    allow_data_change: bool,
    console: Console,
) -> Path | None:
    """The newest checkpoint whose every byte is as written, on every rank the same.

    Raises:
        CheckpointError: there is none.
    """
    damaged: dict[Path, str] = {}
    resume_from = broadcast_object(resume_from)
    while resume_from.checkpoint and (damage := changed(resume_from.checkpoint)):
        damaged[resume_from.checkpoint] = damage
        resume_from = find_resume_point(config, damaged)
        _check_data(config, resume_from, indexes, allow_data_change)
    for note in resume_from.notes:
        console.print(note, style="yellow", markup=False, highlight=False)
    if resume_from.checkpoint and not has_checksums(resume_from.checkpoint):
        console.print(
            f"{resume_from.checkpoint} has no {MANIFEST_FILE}: its files cannot be compared with "
            "checksums",
            style="yellow",
            markup=False,
            highlight=False,
        )
    return resume_from.checkpoint


def _train(
    config: RunConfig,
    parallel: Parallel,
    resume_from: Path | None,
    start_from: Path | None,
    indexes: list[SourceIndex],
    console: Console,
    ownership: Ownership | None,
) -> None:
    chunks = build_model_chunks(config, parallel)
    if not resume_from:
        for chunk in chunks:
            initialize_weights(chunk, config)
        if start_from:
            load_weights(start_from, chunks)
    freeze(chunks, config, parallel)
    factors = multipliers(chunks, config, parallel)
    rows = module_table(chunks, factors, parallel)
    print_module_table(rows, config, console)
    chunks = wrap_data_parallel(chunks, parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)

    step, data_state = 0, None
    counters = {"tokens": 0, "samples": 0, "tiles": 0, "skipped_by": {}}
    if resume_from:
        progress = load_training_state(resume_from, chunks, optimizer, scheduler, parallel)
        step, counters = progress["step"], progress["counters"]
        data_state = progress["data_state"]
    _announce(config, parallel, step, resume_from, start_from, console)
    changes = data_changes(config, indexes, data_state) if data_state else []
    lines = [f"data: {line}" for line in changes]
    if resume_from:
        lines += rate_changes(read_config(resume_from), config, step)
    for line in lines:
        console.print(line, style="yellow", markup=False, highlight=False)
    if step >= config.train.steps:
        console.print(f"{config.run.dir}: all {config.train.steps} steps are done")
        return

    loader = None
    if parallel.is_model_parallel_main:
        loader = iter(
            build_loader(
                config,
                indexes,
                parallel.data_rank,
                parallel.data_size,
                data_state,
                allow_change=bool(changes),
            )
        )
    writer = None
    if parallel.is_main:
        for note in open_run_folder(config, step):
            console.print(note, markup=False, highlight=False)
        writer = MetricsWriter(config, step, console)
        if step == 0 or changes:
            writer.name_skipped(step, [sample for index in indexes for sample in index.rejected])

    def save() -> Path:
        assert data_state is not None
        on_main_rank(lambda: ownership and ownership.check())
        return save_training_state(
            config, step, chunks, optimizer, scheduler, data_state, counters, parallel
        )

    last_saved = step
    try:
        while step < config.train.steps:
            started = time.perf_counter()
            batch = next_step_batch(loader, parallel)
            if batch is None:
                if step != last_saved:
                    save()
                raise DataError(
                    f"every source has reached its max_epochs: the data ended at step {step} of "
                    f"train.steps {config.train.steps}, which is saved"
                )
            data_seconds = time.perf_counter() - started
            scheduler.step(increment=1)
            lr = learning_rate(scheduler, config)
            step += 1
            result = train_step(chunks, optimizer, batch, parallel, step)
            data_state = batch.data_state
            skipped = _gather_skipped(batch, parallel) if result.num_skipped else []
            repaired = _gather_repaired(batch, parallel) if result.num_repaired else {}
            counters = {
                "tokens": counters["tokens"] + result.num_trained_tokens,
                "samples": counters["samples"] + result.num_samples,
                "tiles": counters["tiles"] + result.num_tiles,
                "skipped_by": add_counts(counters["skipped_by"], count_skipped(skipped)),
            }
            seconds = time.perf_counter() - started
            if writer:
                num_positions = config.train.global_batch_size * config.stage.sequence_length
                record = {
                    "loss": result.loss,
                    "grad_norm": result.grad_norm,
                    "lr": lr,
                    "tokens": result.num_trained_tokens,
                    "tiles": result.num_tiles,
                    "samples": result.num_samples,
                    "skipped": len(skipped),
                    "skipped_total": sum(counters["skipped_by"].values()),
                    "padding": 1 - result.num_tokens / num_positions,
                    "seconds": seconds,
                    "data_seconds": data_seconds,
                    "tokens_per_second": result.num_tokens / seconds,
                    "peak_memory_bytes": platform.current().peak_memory_bytes(),
                    **{f"skipped/{name}": n for name, n in count_skipped(skipped).items()},
                    **{f"repaired/{name}": n for name, n in repaired.items()},
                    **batch.shortened,
                }
                writer.write(step, record, skipped)
            check_run(
                counters["skipped_by"], counters["samples"], config.data.max_skipped_share, skipped
            )
            if step % config.checkpoint.every == 0 or step == config.train.steps:
                check_parameters([chunk.module for chunk in chunks], step, parallel)
                saved = save()
                last_saved = step
                console.print(f"saved {saved}", markup=False, highlight=False)
    finally:
        if writer:
            writer.close()


def _announce(
    config: RunConfig,
    parallel: Parallel,
    step: int,
    resume_from: Path | None,
    start_from: Path | None,
    console: Console,
) -> None:
    if resume_from:
        origin = f"resuming {resume_from} at step {step}"
    elif start_from:
        origin = f"starting from the weights of {start_from}"
    else:
        origin = "starting from random weights"
    processes = "1 process" if parallel.world_size == 1 else f"{parallel.world_size} processes"
    console.print(
        f"{origin}; {processes} on {platform.current().device_name()}: tensor "
        f"{parallel.tensor_size} x pipeline {parallel.pipeline_size} x data {parallel.data_size}; "
        f"{config.train.global_batch_size} sequences of {config.stage.sequence_length} tokens a "
        f"step, {config.train.precision}",
        markup=False,
    )


def _gather_repaired(batch: StepBatch, parallel: Parallel) -> dict[str, int]:
    """What all data ranks repaired in this step: "SOURCE/WHAT" -> changes."""
    gathered: list = [None] * parallel.data_size
    dist.all_gather_object(gathered, batch.repaired, group=parallel.groups.dp)
    return functools.reduce(add_counts, gathered)


def _gather_skipped(batch: StepBatch, parallel: Parallel) -> list[SkippedSample]:
    """What all data ranks skipped in this step."""
    if parallel.data_size == 1:
        return list(batch.skipped)
    gathered: list = [None] * parallel.data_size
    dist.all_gather_object(gathered, batch.skipped, group=parallel.groups.dp)
    unique = dict.fromkeys(sample for skipped in gathered for sample in skipped)
    return list(unique)
