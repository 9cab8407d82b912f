"""One optimizer step on Megatron-core's schedules."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm import phases, platform, stop_requests
from nvlm.batch import MicroBatch, StepBatch
from nvlm.model.rows import num_beside, with_rows_alike
from nvlm.parallel.groups import Parallel
from nvlm.train.diagnose import explain_gradient_norm, explain_loss
from nvlm.train.loss_weights import normalize_loss_weights
from nvlm.train.optim import bare, step_if
from nvlm.train.router_losses import NUM_SUMS, begin_router_losses, router_means, router_sums
from nvlm.train.source_losses import losses_by_source, sums_by_source

if TYPE_CHECKING:  # Megatron-core is imported behind the platform, which nvlm.model chooses
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer import MegatronOptimizer

    from nvlm.model.nvlm_d import NVLMD
    from nvlm.train.teacher import Teacher


@dataclass(frozen=True)
class StepResult:
    """What a step did, over the whole global batch."""

    loss: float  # mean over all trained tokens of the step, by their weights
    source_losses: dict[str, float]  # the same of each source that the step trains on
    router_losses: dict[str, float]  # of a decoder with experts, see `router_means`
    distillation_loss: float | None  # mean divergence from the teacher, without its weight
    grad_norm: float  # before clipping
    is_updated: bool  # False: `is_wanted` said no, and the weights are as before
    num_trained_tokens: int
    num_tokens: int  # of samples, without padding
    num_tiles: int
    num_samples: int
    num_skipped: int  # left out: too long, or not readable
    num_repaired: int  # changes made to samples so that they could be used
    stop_reason: str | None  # why a process was asked to stop; the same on all
    # On this process; reading the loss, and then the gradient norm, waits for the device.
    forward_backward_seconds: float
    optimizer_seconds: float


def train_step(
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    batch: StepBatch,
    parallel: Parallel,
    step: int,
    is_wanted: Callable[[float, float], bool] = lambda _loss, _grad_norm: True,
    teacher: Teacher | None = None,
    draw: Callable[[], None] = lambda: None,
) -> StepResult:
    """Forward and backward over the micro-batches, then the optimizer.

    The gradient is of the mean loss over all trained tokens of the global batch, weighted as
    `train.loss_weighting` says (Megatron's per-token loss), whatever the layout.

    Args:
        is_wanted: whether a (finite) loss and gradient norm update the weights; asked once, alike.
        teacher: whose distributions the gradient is of too; `loss` is without them.
        draw: makes the next forward passes draw the step's random numbers from their beginning.

    Raises:
        TrainingError: the loss or the gradient norm is not finite; the same on every process, with
            the modules or parameters and the samples where that began.
    """
    started = time.perf_counter()
    bare_chunks = bare(chunks)
    _begin(chunks, optimizer, draw)
    micro_batches = _weighed(batch, bare_chunks, parallel)
    forward = partial(forward_step, num_sources=len(batch.epochs), teacher=teacher)
    reports = run_schedule(forward, chunks, micro_batches)
    phases.enter(phases.COUNTING)
    result, losses_apart = _reduce(reports, batch, bare_chunks, parallel, teacher is not None)
    computed = time.perf_counter()
    if not math.isfinite(result["loss_sum"]):
        losses = [float(loss_sum) for loss_sum, *_ in reports]
        run_again = partial(_forward_again, chunks, micro_batches, draw)
        raise explain_loss(bare_chunks, micro_batches, losses, run_again, step, parallel)
    phases.enter(phases.UPDATING)
    num_trained = int(result["num_trained_tokens"])
    loss = result["loss_sum"] / max(num_trained, 1)
    grad_norm, is_updated = step_if(
        optimizer, lambda norm: math.isfinite(norm) and is_wanted(loss, norm)
    )
    if not math.isfinite(grad_norm):
        raise explain_gradient_norm(bare_chunks, micro_batches, grad_norm, step, parallel)
    return StepResult(
        loss=loss,
        **losses_apart,
        grad_norm=grad_norm,
        is_updated=is_updated,
        num_trained_tokens=num_trained,
        num_tokens=int(result["num_tokens"]),
        num_tiles=int(result["num_tiles"]),
        num_samples=int(result["num_samples"]),
        num_skipped=int(result["num_skipped"]),
        num_repaired=int(result["num_repaired"]),
        stop_reason=next((why for why in stop_requests.REASONS if result[why]), None),
        forward_backward_seconds=computed - started,
        optimizer_seconds=time.perf_counter() - computed,
    )


def _begin(
    chunks: list[DistributedDataParallel], optimizer: MegatronOptimizer, draw: Callable[[], None]
) -> None:
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    draw()


def _weighed(batch: StepBatch, chunks: list[NVLMD], parallel: Parallel) -> list[MicroBatch]:
    """The step's micro-batches, in which each token has its weight; routers know theirs."""
    phases.enter(phases.WEIGHING)
    begin_router_losses(chunks, batch.micro_batches, parallel)
    return normalize_loss_weights(batch.micro_batches, parallel)


def run_schedule(
    forward, chunks: list, micro_batches: list[MicroBatch], forward_only: bool = False
) -> list:
    """Megatron-core's schedule for the layout; returns what the losses report (last stages)."""
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    # Of each, the tokens that are this context-parallel rank's.
    micro_batches = [micro_batch.on_this_rank() for micro_batch in micro_batches]
    layout, num_levels = chunks[0].config, bare(chunks)[0].num_levels
    micro_batches = with_rows_alike(
        micro_batches,
        multiple=layout.tensor_model_parallel_size if layout.sequence_parallel else 1,
        all_alike=layout.pipeline_model_parallel_size > 1,
    )
    return get_forward_backward_func()(
        forward_step_func=forward,
        # One iterator for each chunk, and chunks in a list even where there is one.
        data_iterator=[enumerate(micro_batches) for _ in chunks],
        model=chunks,
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].row_length + num_levels * num_beside(micro_batches[0].beside),
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _forward_again(
    chunks: list, micro_batches: list[MicroBatch], draw: Callable[[], None], begin
) -> None:
    """The step's forward passes; `begin(chunk, micro_batch)` is called before each of them."""
    draw()

    def forward(data_iterator, model):
        number, micro_batch = next(data_iterator)
        begin(_index_of(model, chunks), number)
        return forward_step(iter([(number, micro_batch)]), model)

    run_schedule(forward, chunks, micro_batches, forward_only=True)


def _index_of(wanted, items: list) -> int:
    return next(index for index, item in enumerate(items) if item is wanted)


def forward_step(data_iterator, model, num_sources: int = 0, teacher: Teacher | None = None):
    """What Megatron-core's schedules call for a micro-batch and a chunk of the model.

    The loss function reports, on last stages, the weighted sum of losses, the number of trained
    tokens, `sums_by_source`, and the weighted sum of divergences from the teacher.
    """
    number: int
    micro_batch: MicroBatch
    number, micro_batch = next(data_iterator)
    phases.enter(phases.FORWARD, micro_batch=number)
    weights, loss_mask = micro_batch.weights(), micro_batch.loss_mask()

    def loss(losses: Tensor):
        losses, apart = (losses, None) if teacher is None else losses
        weighted = losses.float() * weights
        loss_sum = weighted.sum()
        num_trained = loss_mask.sum().to(torch.int)
        by_source = sums_by_source(weighted, micro_batch, num_sources)
        report = [loss_sum.detach().double(), num_trained.double(), by_source]
        if teacher is not None and apart is not None:
            apart_sum = (apart * weights).sum()
            loss_sum = loss_sum + teacher.weight * apart_sum
            report.append(apart_sum.detach().double())
        return loss_sum, num_trained, report

    output = model(micro_batch) if teacher is None else teacher.losses(model, micro_batch)
    phases.enter(phases.BACKWARD, micro_batch=number)
    return output, loss


_COUNTS = (
    "loss_sum",
    "num_trained_tokens",
    "num_tokens",
    "num_tiles",
    "num_samples",
    "num_skipped",
    "num_repaired",
    "distillation_sum",
    *stop_requests.REASONS,
)


def _reduce(
    reports, batch: StepBatch, chunks: list[NVLMD], parallel: Parallel, has_teacher: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """Sum the step's counts over all data ranks; losses live on last stages only.

    Returns also `source_losses`, `router_losses` and `distillation_loss`.
    """
    num_counts, sources = len(_COUNTS), list(batch.epochs)
    device = platform.current().device()
    num_losses = num_counts + 2 * len(sources)
    totals = torch.zeros(num_losses + NUM_SUMS, dtype=torch.float64, device=device)
    totals[num_losses:] = router_sums(chunks)
    if parallel.is_last_stage and parallel.tensor_rank == 0:
        for loss_sum, num_trained, by_source, *apart_sum in reports:
            totals[0] += loss_sum
            totals[1] += num_trained
            totals[num_counts:num_losses] += by_source.flatten()
            totals[_COUNTS.index("distillation_sum")] += sum(apart_sum)
    if parallel.is_model_parallel_main:
        for micro_batch in batch.micro_batches:
            totals[2] += micro_batch.num_real_tokens
            totals[3] += micro_batch.num_tiles
            totals[4] += len(micro_batch.sample_keys)
        totals[5] += len(batch.skipped)
        totals[6] += sum(batch.repaired.values())
    if asked := stop_requests.asked():
        totals[_COUNTS.index(asked)] += 1
    dist.all_reduce(totals)
    values = totals.tolist()  # at once: the host waits for the device
    counts: dict[str, float] = dict(zip(_COUNTS, values[:num_counts], strict=True))
    apart = counts["distillation_sum"] / max(counts["num_trained_tokens"], 1)
    return counts, {
        "distillation_loss": apart if has_teacher else None,
        "source_losses": losses_by_source(sources, values[num_counts:num_losses]),
        "router_losses": router_means(values[num_losses:]),
    }
