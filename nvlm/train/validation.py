"""Validation during training: held-out losses, and answers to held-out questions.

For the loop:

    validation = Validation(training, start, console)
    measured = validation.after_step()      # every rank calls it after every step

`after_step` returns None where the step is not one to measure after, else all that was measured, on
every rank the same: `validation/loss` and `validation/loss/SOURCE`, with `validation.questions`
`validation/exact_match/TASK`, and with `validation.benchmarks` `benchmark/NAME`. What a checkpoint
is to be the best by is one of these keys.

Losses are weighted as the training's are. Nothing of the training changes: weights are only read,
nothing random is drawn, and the held-out samples have a position of their own, always the first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from rich.console import Console

from nvlm import phases, platform
from nvlm.batch import SkippedSample, StepBatch, StepPart
from nvlm.errors import DataError
from nvlm.model.tile_parallel import encode_shares
from nvlm.parallel.broadcast import next_step_batch
from nvlm.parallel.groups import broadcast_object
from nvlm.parallel.tiles import own_share
from nvlm.printing import printable
from nvlm.train.live_benchmarks import LiveBenchmarks
from nvlm.train.live_questions import LiveQuestions
from nvlm.train.optim import bare, gather_parameters
from nvlm.train.skips import gather_skipped
from nvlm.train.source_losses import losses_by_source
from nvlm.train.start import Start
from nvlm.train.step import forward_step, run_schedule
from nvlm.train.training import Training


class Validation:
    """Measures a training on held-out samples. Every rank makes one and calls its methods."""

    def __init__(self, training: Training, start: Start, console: Console):
        """`start` has what is measured and asked, on the processes that read it."""
        self._training = training
        self._data = start.validation
        self._console = console
        self._named_skipped: set[SkippedSample] = set()
        self._questions = None
        wanted = training.config.validation
        if wanted.every is not None and wanted.questions:
            questions = broadcast_object(list(start.questions))
            self._questions = LiveQuestions(training, questions, console)
        self._benchmarks = None
        if wanted.every is not None and wanted.benchmarks:
            self._benchmarks = LiveBenchmarks(training, start.benchmarks, console)

    def after_step(self) -> dict[str, float] | None:
        """What is measured after the training's last step, on every rank; None: nothing is due.

        Raises:
            DataError: the held-out samples cannot be read any more.
        """
        training, config = self._training, self._training.config
        every = config.validation.every
        if every is None or (training.step % every and training.step < config.train.steps):
            return None
        started = time.perf_counter()
        try:
            with phases.within(phases.VALIDATING), looking_at(training):
                measured = self._measure()
        except Exception as error:
            error.add_note(f"in the validation after step {training.step}")
            raise
        measured["validation/seconds"] = time.perf_counter() - started
        self._console.print(validation_line(training.step, measured), markup=False, highlight=False)
        return measured

    def _measure(self) -> dict[str, float]:
        parallel = self._training.parallel
        share = own_share(parallel) if self._training.config.parallel.shares_tiles else None
        batches = self._data and self._data.batches(
            parallel.data_rank, parallel.data_size, platform.current().copied_ahead, share
        )
        measured, skipped = held_out_losses(self._training, batches)
        self._name_skipped(skipped)
        if self._questions is not None:
            measured |= self._questions.ask()
        measured = {f"validation/{name}": value for name, value in measured.items()}
        if self._benchmarks is not None:
            measured |= self._benchmarks.ask()
        return measured

    def _name_skipped(self, skipped: list[SkippedSample]) -> None:
        """Say once what is left out; where it is the same again, it was said."""
        new = [sample for sample in skipped if sample not in self._named_skipped]
        self._named_skipped.update(new)
        if new:
            self._console.print(
                printable(f"validation: {len(new):,} samples left out; the first is {_said(new)}"),
                style="yellow",
                markup=False,
                highlight=False,
            )


@contextmanager
def looking_at(training: Training) -> Iterator[None]:
    """The model as the last step left it, in evaluation mode and without gradients.

    Behind the block it is as before.
    """
    # Where they still travel, parameters are those of the step before.
    gather_parameters(training.chunks)
    modes = [(module, module.training) for c in training.chunks for module in c.modules()]
    try:
        for chunk in training.chunks:
            chunk.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def held_out_losses(
    training: Training, batches: Iterator[StepBatch] | Iterator[StepPart] | None
) -> tuple[dict[str, float], list[SkippedSample]]:
    """`loss` and `loss/SOURCE` of all `batches`, and what was left out; within `looking_at`.

    The same on every rank; `skipped`, if any, is how many samples were left out.

    Args:
        batches: on the ranks that read.

    Raises:
        DataError: no sample is left.
    """
    parallel, shares_tiles = training.parallel, training.config.parallel.shares_tiles
    device = platform.current().device()
    sources: list[str] = []
    skipped: list[SkippedSample] = []
    sums = torch.zeros(2, 0, dtype=torch.float64, device=device)
    while (batch := next_step_batch(batches, parallel, shares_tiles)) is not None:
        if not sources:
            sources = list(batch.epochs)
            sums = torch.zeros(2, len(sources), dtype=torch.float64, device=device)
        skipped += batch.skipped
        batch = encode_shares(batch, bare(training.chunks)[0], parallel)
        forward = partial(forward_step, num_sources=len(sources))
        reports = run_schedule(forward, training.chunks, batch.micro_batches, forward_only=True)
        if parallel.is_last_stage and parallel.tensor_rank == 0:
            for _, _, by_source, *_ in reports:
                sums += by_source
    dist.all_reduce(sums)
    skipped = gather_skipped(StepBatch([], skipped, {}), parallel)
    losses, weights = sums.tolist()
    if not sum(weights):
        raise DataError(
            f"validation.split {training.config.validation.split}: no sample can be used; the "
            f"first is {_said(skipped)}"
        )
    by_source = losses_by_source(sources, [*losses, *weights])
    of_sources = {f"loss/{source}": loss for source, loss in by_source.items()}
    left_out = {"skipped": len(skipped)} if skipped else {}
    return {"loss": sum(losses) / sum(weights), **of_sources, **left_out}, skipped


def _said(skipped: list[SkippedSample]) -> str:
    first = skipped[0]
    return f"{first.source} {first.shard} {first.key}: {first.reason}: {first.detail}"


def validation_line(step: int, measured: dict[str, float]) -> str:
    """For the terminal; what sources and tasks have is in the run's files."""
    exact = measured.get("validation/exact_match")
    right = "" if exact is None else f"  exact match {exact:.1%}"
    benchmarks = "".join(
        f"  {name.removeprefix('benchmark/')} {value:.2f}"
        for name, value in measured.items()
        if name.startswith("benchmark/") and name.count("/") == 1
    )
    return (
        f"validation after step {step}: loss {measured['validation/loss']:.4f}{right}{benchmarks}"
        f"  {measured['validation/seconds']:.1f} s"
    )
