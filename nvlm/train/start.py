"""Where a training begins: found and refused before its model is built, then built and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from nvlm import platform
from nvlm.checkpoint_files import (
    MANIFEST_FILE,
    changed,
    has_checksums,
    read_config,
    read_progress,
)
from nvlm.config import RunConfig
from nvlm.config.changed import changed as changed_config
from nvlm.config.checks import check_world_size
from nvlm.data.loading.training_data import TrainingData, check_sources, open_training_data
from nvlm.data.loading.validation_data import ValidationData, open_validation_data
from nvlm.evaluate.questions import Question
from nvlm.parallel.agreement import on_ranks
from nvlm.parallel.groups import (
    Parallel,
    broadcast_object,
    is_main_process,
    reading_ranks,
    world_size_from_environment,
)
from nvlm.plan.refuse import check_fit
from nvlm.platform.features import check_context, check_fp8, decide
from nvlm.platform.megatron_calls import seed_random_numbers
from nvlm.run_checkpoints import Newest
from nvlm.train.benchmark_files import BenchmarkQuestions, read_benchmarks
from nvlm.train.checkpoint import find_initial_weights, find_resume_point
from nvlm.train.live_questions import choose_live_questions
from nvlm.train.module_table import print_module_table
from nvlm.train.patterns import check_patterns
from nvlm.train.rates import rate_changes
from nvlm.train.stage_table import print_stage_table
from nvlm.train.teacher import Teacher, find_teacher, stored_teacher
from nvlm.train.throughput import device_card, explain_peak
from nvlm.train.training import Training, build_with_weights


@dataclass(frozen=True)
class Start:
    """Where a training begins; on ranks that read no data, nothing is known before `confirm`."""

    resumed: Newest = field(default_factory=Newest)  # the run's own checkpoint, if it has one
    weights: Path | None = None  # another run's checkpoint; None: random ones, where none resumes
    teacher: Path | None = None  # to distil from, if the run does
    data: TrainingData | None = None  # on the ranks that read
    validation: ValidationData | None = None  # on these too, where the run validates
    questions: Sequence[Question] = ()  # on the main process, those that validation asks
    benchmarks: Sequence[BenchmarkQuestions] = ()  # on the ranks that read, those that it asks
    allow_data_change: bool = False


def check_memory(config: RunConfig, world_size: int) -> None:
    """Refuse a run that the GPU's memory is too small for; on a CPU nothing is looked at.

    Raises:
        ConfigError: see `nvlm.plan.refuse.check_fit`.
        CheckpointError: there is no teacher where `train.distill` names one.
    """
    here = platform.current()
    if memory_bytes := here.machine().memory_bytes:
        layers = here.resolve_layer_implementation(
            config.model.layer_implementation, config.train.precision
        )
        resolved = changed_config(config, {"model.layer_implementation": layers})
        check_fit(resolved, world_size, memory_bytes, stored_teacher(config))


def check_at_once(config: RunConfig, has_weights: bool = True) -> None:
    """The part of `prepare` that reads no shard, which may take hours; every rank calls this.

    Raises:
        NvlmError: something the user can put right.
    """
    world_size = world_size_from_environment()
    check_patterns(config)
    check_world_size(config, world_size)
    platform.current().resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )

    def look() -> None:
        resumed, _ = _find_weights(config, has_weights)
        if has_weights:
            find_teacher(config, resumed.checkpoint)
        check_sources(config)

    on_ranks(reading_ranks(config.parallel, world_size), look)


def prepare(config: RunConfig, allow_data_change: bool = False, has_weights: bool = True) -> Start:
    """All that can be refused before the run's process groups exist; every rank calls this.

    The ranks that will read data look at the disks, the others wait and raise what they raise.

    Args:
        allow_data_change: resume although the data or what decides their order have changed; see
            `Planner.continue_from`.
        has_weights: whether those to start from are there yet; else they are not looked for.

    Raises:
        NvlmError: something the user can put right.
    """
    world_size = world_size_from_environment()
    check_patterns(config)
    check_world_size(config, world_size)
    here = platform.current()
    layers = here.resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )
    check_fp8(config, here.machine(), layers)
    check_context(config, here.machine(), layers)

    def find() -> Start:
        resumed, weights = _find_weights(config, has_weights)
        teacher = find_teacher(config, resumed.checkpoint) if has_weights else None
        data = _open_data(config, resumed, allow_data_change)
        validation = open_validation_data(config, data.indexes, data.encoder)
        questions = choose_live_questions(config) if is_main_process() else []
        benchmarks = read_benchmarks(config)
        return Start(
            resumed, weights, teacher, data, validation, questions, benchmarks, allow_data_change
        )

    readers = reading_ranks(config.parallel, world_size)
    return on_ranks(readers, find) or Start(allow_data_change=allow_data_change)


def confirm(start: Start, config: RunConfig, console: Console) -> Start:
    """The same start on every rank, from the newest checkpoint whose every byte is as written.

    Raises:
        CheckpointError: there is none.
    """
    found = broadcast_object((start.resumed, start.weights, start.teacher))
    resumed, weights, teacher = found
    data, damaged = start.data, {}
    while resumed.checkpoint and (damage := changed(resumed.checkpoint)):
        damaged[resumed.checkpoint] = damage
        resumed = find_resume_point(config, damaged)
    if damaged:
        readers = reading_ranks(config.parallel, world_size_from_environment())
        data = on_ranks(readers, lambda: _open_data(config, resumed, start.allow_data_change))
    for note in resumed.notes:
        console.print(note, style="yellow", markup=False, highlight=False)
    if resumed.checkpoint and not has_checksums(resumed.checkpoint):
        console.print(
            f"{resumed.checkpoint} has no {MANIFEST_FILE}: its files cannot be compared with "
            "checksums",
            style="yellow",
            markup=False,
            highlight=False,
        )
    return replace(start, resumed=resumed, weights=weights, teacher=teacher, data=data)


def begin(config: RunConfig, parallel: Parallel, start: Start, console: Console) -> Training:
    """The training at its first step to take; says where it comes from and what is different."""
    checkpoint = start.resumed.checkpoint
    # A process may run several trainings: each draws as if it were alone.
    seed_random_numbers(config.train.seed)
    chunks = None if checkpoint else build_with_weights(config, parallel, start.weights)
    training = Training(config, parallel, chunks)
    if start.teacher is not None:
        training.teacher = Teacher(config, parallel, start.teacher)
    print_module_table(training.module_rows, config, console)
    print_stage_table(config, parallel.data_size, console)
    if checkpoint:
        training.load(checkpoint)
    _announce(training, start, console)
    lines = [f"data: {line}" for line in start.data.changes] if start.data else []
    if checkpoint:
        lines += rate_changes(read_config(checkpoint), config, training.step)
    for line in lines:
        console.print(line, style="yellow", markup=False, highlight=False)
    return training


def _find_weights(config: RunConfig, has_weights: bool) -> tuple[Newest, Path | None]:
    """The run's own checkpoint, and where it has none another's."""
    resumed = find_resume_point(config)
    if resumed.checkpoint or not has_weights:
        return resumed, None
    return resumed, find_initial_weights(config)


def _open_data(config: RunConfig, resumed: Newest, allow_change: bool) -> TrainingData:
    progress = read_progress(resumed.checkpoint) if resumed.checkpoint else None
    return open_training_data(config, progress and progress["data_state"], allow_change)


def _announce(training: Training, start: Start, console: Console) -> None:
    config, parallel = training.config, training.parallel
    if start.resumed.checkpoint:
        origin = f"resuming {start.resumed.checkpoint} at step {training.step}"
    elif start.weights:
        origin = f"starting from the weights of {start.weights}"
    else:
        origin = "starting from random weights"
    if start.teacher:
        origin += f", taught by {start.teacher}"
    processes = "1 process" if parallel.world_size == 1 else f"{parallel.world_size} processes"
    console.print(
        f"{origin}; {processes} on {platform.current().device_name()}: {parallel.sizes()}; "
        f"{config.train.global_batch_size} sequences of {config.stage.sequence_length} tokens a "
        f"step, {config.train.precision}",
        markup=False,
    )
    _print_features(config, console)
    if line := explain_peak(device_card()):
        console.print(line, markup=False, highlight=False)


def _print_features(config: RunConfig, console: Console) -> None:
    """Which kernels and settings of the GPU are used; a CPU has no choice, and no lines."""
    device_platform = platform.current()
    machine = device_platform.machine()
    if not machine.has_gpu:
        return
    layers = device_platform.resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )
    for feature in decide(config, machine, layers):
        style = "dim" if feature.value == "off" else None
        console.print(f"  {feature}", style=style, markup=False, highlight=False)
