"""A training: the model, its optimizer and schedule, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from nvlm import phases, platform
from nvlm.batch import SkippedSample, StepBatch
from nvlm.config.schema import RunConfig
from nvlm.errors import TrainingError
from nvlm.megatron.staged_state import Stage, bad_tensors
from nvlm.model.nvlm_d import NVLMD, build_model_chunks
from nvlm.model.parts.adapters import measure_rows
from nvlm.model.parts.dropout import begin_step
from nvlm.model.parts.initialize import initialize_weights
from nvlm.model.parts.nf4 import pack_matrices, round_matrices
from nvlm.model.tile_parallel import encode_shares
from nvlm.parallel.agreement import Channel
from nvlm.parallel.groups import Parallel
from nvlm.platform.base import Copies
from nvlm.platform.features import is_on
from nvlm.rows import EVERY_ADAPTER
from nvlm.sizes.adapters import quantized
from nvlm.sizes.flops import step_flops
from nvlm.train.checkpoint import (
    checkpoints_folder,
    load_training_state,
    load_weights,
    training_state,
    write_training_state,
)
from nvlm.train.diagnose import check_parameters, check_written
from nvlm.train.events import note_event
from nvlm.train.freezing import freeze, group_rates, module_table, multipliers
from nvlm.train.optim import (
    bare,
    build_optimizer,
    build_scheduler,
    gather_parameters,
    learning_rate,
    wrap_data_parallel,
)
from nvlm.train.replay_file import keep_for_replay
from nvlm.train.skips import add_counts, count_skipped, gather_repaired, gather_skipped
from nvlm.train.slow_ranks import SlowRanks
from nvlm.train.spikes import Spike, SpikeWatch, react
from nvlm.train.step import StepResult, train_step
from nvlm.train.teacher import Teacher
from nvlm.train.throughput import StepWork, step_work


@dataclass(frozen=True)
class Counters:
    """What a run has trained on so far, over all data ranks."""

    tokens: int = 0
    samples: int = 0
    tiles: int = 0
    skipped_by: dict[str, int] = field(default_factory=dict)  # "SOURCE/REASON" -> samples

    @property
    def num_skipped(self) -> int:
        return sum(self.skipped_by.values())


@dataclass(frozen=True)
class StepTaken:
    """What a training's step did, over all data ranks."""

    result: StepResult
    work: StepWork
    learning_rate: float  # the schedule's, before any module's own factor
    group_rates: dict[str, float]  # pattern of `lr_multipliers` -> the rate of what it matches
    skipped: list[SkippedSample]
    repaired: dict[str, int]  # "SOURCE/WHAT" -> changes made to samples
    shortened: dict[str, int]  # see `StepBatch`
    epochs: dict[str, float]  # see `StepBatch`
    encode_seconds: float  # the encoder's forward passes, on this process


@dataclass
class _CopiesUnderWay:
    """Of numbers that an update changes, and for how many seconds updates have waited for such."""

    pending: list[Copies] = field(default_factory=list)
    seconds: float = 0.0


def _update_when_copied(copies: _CopiesUnderWay, update: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    while copies.pending:
        copies.pending.pop().hold()
    copies.seconds += time.perf_counter() - started
    return update()


class Training:
    """One stage's training on this process; all processes make one and call the same methods.

    `chunks` are wrapped for data parallelism, `module_rows` are those of the start-up table. `step`
    counts the steps taken, `data_state` is the position in the data behind them (None before the
    first), and `last_saved` is the step that the newest checkpoint holds.
    """

    def __init__(self, config: RunConfig, parallel: Parallel, chunks: list[NVLMD] | None = None):
        """Freeze, wrap and give an optimizer to the bare `chunks`, which start from their weights.

        Without `chunks` they are built and have no weights yet: `load` has to follow.

        Raises:
            ConfigError: a pattern for freezing or rates fits no parameter, or nothing is left.
        """
        has_weights = chunks is not None
        if chunks is None:
            chunks = build_model_chunks(config, parallel)
        freeze(chunks, config, parallel)
        factors = multipliers(chunks, config, parallel)
        self.config = config
        self.parallel = parallel
        self.module_rows = module_table(chunks, factors, parallel)
        self.chunks = wrap_data_parallel(chunks, parallel, _overlaps(config))
        self.optimizer = build_optimizer(self.chunks, config, factors, parallel)
        self.scheduler = build_scheduler(self.optimizer, config)
        self.copies = _CopiesUnderWay()
        update = self.optimizer.step
        self.optimizer.step = partial(_update_when_copied, self.copies, update)  # type: ignore[method-assign]
        self.flops = step_flops(config)
        self.step = 0
        self.last_saved = 0
        self.data_state: dict | None = None
        self.counters = Counters()
        self.spikes = SpikeWatch(config.train)
        if has_weights:
            self._pack()
        self.slow_ranks = SlowRanks(config, parallel)
        self.teacher: Teacher | None = None

    def take_step(self, batch: StepBatch) -> StepTaken:
        """Train on a global step, of which `batch` is this data rank's share.

        Where `train.on_spike` leaves out its update, the step and its samples count, and the next
        one takes its place in the schedule.

        Raises:
            TrainingError: see `train_step`; or a spike, with `train.on_spike: stop`.
        """
        self.scheduler.step(increment=1)
        rate = learning_rate(self.scheduler, self.config)
        self.step += 1
        started, began = time.perf_counter(), platform.current().moment()
        phases.enter(phases.ENCODING, self.step)
        batch = encode_shares(batch, bare(self.chunks)[0], self.parallel)
        encoded = time.perf_counter() - started
        result = self._train_step(batch)
        # Wherever the encoder runs, it is a part of the forward pass.
        forward_backward = encoded + result.forward_backward_seconds
        result = replace(result, forward_backward_seconds=forward_backward)
        phases.enter(phases.RECORDING)
        skipped = gather_skipped(batch, self.parallel) if result.num_skipped else []
        repaired = gather_repaired(batch, self.parallel) if result.num_repaired else {}
        before = self.counters
        self.counters = Counters(
            tokens=before.tokens + result.num_trained_tokens,
            samples=before.samples + result.num_samples,
            tiles=before.tiles + result.num_tiles,
            skipped_by=add_counts(before.skipped_by, count_skipped(skipped)),
        )
        self.data_state = batch.data_state
        first = bare(self.chunks)[0]
        own_seconds = platform.current().seconds_between(began, first.gradients_ready)
        work = step_work(batch, self.flops, self.parallel, own_seconds)
        self.slow_ranks.note(self.step, own_seconds, phases.reading_seconds())
        encode_seconds = first.visual.take_encoder_seconds()
        rates = group_rates(self.config, self.module_rows, rate)
        return StepTaken(
            result,
            work,
            rate,
            rates,
            skipped,
            repaired,
            batch.shortened,
            batch.epochs,
            encode_seconds,
        )

    def _train_step(self, batch: StepBatch) -> StepResult:
        """`train_step`, and what is to be done where its numbers are strange."""
        spikes: list[Spike] = []
        draw = partial(begin_step, self.config, self.parallel, self.step)

        def is_wanted(loss: float, grad_norm: float) -> bool:
            spikes.extend(self.spikes.look(loss, grad_norm))
            return not spikes or self.config.train.on_spike == "warn"

        try:
            result = train_step(
                self.chunks,
                self.optimizer,
                batch,
                self.parallel,
                self.step,
                is_wanted,
                self.teacher,
                draw,
            )
        except TrainingError as error:  # the same on every process
            self._keep_for_replay(batch, str(error), error.add_note)
            raise
        if spikes:
            react(spikes, self.config, self.step)
        if not result.is_updated:
            self.scheduler.step(increment=-1)
        return result

    def _keep_for_replay(
        self, batch: StepBatch, message: str, say_it: Callable[[str], None]
    ) -> None:
        phases.enter(phases.SAVING)
        note_event(self.config.run.dir, "not_finite", self.step, message.splitlines()[0])
        last = checkpoints_folder(self.config) / f"step_{self.last_saved:08d}"
        say_it(
            keep_for_replay(
                self.config,
                bare(self.chunks),
                batch,
                self.parallel,
                self.step,
                message,
                self.data_state,
                (str(last) if self.last_saved else None, self.last_saved),
            )
        )

    def save(
        self, notes: Mapping[str, Any] | None = None, check: Callable[[], None] = lambda: None
    ) -> Path:
        """Write a checkpoint into the run's folder; returns it.

        Args:
            notes: more to say in its `progress.json`.
            check: see `write_training_state`.

        Raises:
            TrainingError: a parameter is not finite.
            CheckpointError: it cannot be written.
        """
        phases.enter(phases.SAVING)
        gather_parameters(self.chunks)
        check_parameters(bare(self.chunks), self.step, self.parallel)
        saved = write_training_state(
            self.config, self._state(), self._progress(notes), self.parallel, check=check
        )
        self.last_saved = self.step
        return saved

    def begin_save(
        self,
        stage: Stage,
        notes: Mapping[str, Any],
        channel: Channel,
        check: Callable[[], None],
    ) -> Callable[[], Path]:
        """Copy to `stage` all that a checkpoint takes; returns what writes it, in another thread.

        Training may go on meanwhile: the next update waits until all is copied. What is returned
        raises what `save` does, on every rank.
        """
        phases.enter(phases.SAVING)
        gather_parameters(self.chunks)
        state, copy = stage.place(self._state())
        copies = platform.current().copy_beside(copy)
        self.copies.pending.append(copies)
        progress, config = self._progress(notes), self.config

        def write() -> Path:
            copies.wait()
            platform.current().join_thread()
            found = channel.gather(bad_tensors(state["weights"]), "looking at parameters")
            check_written([name for part in found for name in part], progress["step"])
            return write_training_state(config, state, progress, self.parallel, channel, check)

        return write

    def _state(self) -> dict:
        return training_state(self.chunks, self.optimizer, self.scheduler, self.parallel)

    def _progress(self, notes: Mapping[str, Any] | None) -> dict[str, Any]:
        assert self.data_state is not None, "no step was taken"
        return {
            "step": self.step,
            "counters": asdict(self.counters),
            "data_state": self.data_state,
            "spikes": self.spikes.state(),
            **({"teacher": self.teacher.content_hash} if self.teacher else {}),
            **(notes or {}),
        }

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint that `save` wrote, at any layout.

        Raises:
            CheckpointError: it is damaged or does not fit the model.
        """
        progress = load_training_state(
            checkpoint, self.chunks, self.optimizer, self.scheduler, self.parallel
        )
        self.step = self.last_saved = progress["step"]
        self.counters = Counters(**progress["counters"])
        self.data_state = progress["data_state"]
        self.spikes.load_state(progress.get("spikes", {}))
        self._pack()

    def _pack(self) -> None:
        """Hold what is to be in 4 bits so, now that it has its values and nothing asks for more."""
        for chunk in bare(self.chunks):
            pack_matrices(chunk, self.config)


def _overlaps(config: RunConfig) -> bool:
    here = platform.current()
    layers = here.resolve_layer_implementation(
        config.model.layer_implementation, config.train.precision
    )
    return is_on("overlapped_data_parallelism", config, here.machine(), layers)


def build_with_weights(
    config: RunConfig, parallel: Parallel, checkpoint: Path | None
) -> list[NVLMD]:
    """This process's bare chunks with random weights, or with those of `checkpoint`.

    Adapters and learned tile tags that the checkpoint does not have begin anew.
    """
    chunks, unset = build_model_chunks(config, parallel), ["*"]
    if checkpoint is not None:
        unset = load_weights(checkpoint, chunks, parallel)
    for chunk in chunks:
        for pattern in unset:
            initialize_weights(chunk, config, pattern)
        if quantized(config):
            round_matrices(chunk, config)
            if {"*", EVERY_ADAPTER} & {*unset}:  # DoRA's lengths are those of the rounded rows
                measure_rows(chunk)
    return chunks
