"""One optimizer step on Megatron-core's schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm import platform
from nvlm.batch import MicroBatch, StepBatch
from nvlm.errors import TrainingError
from nvlm.parallel.groups import Parallel
from nvlm.train.loss_weights import normalize_loss_weights


@dataclass(frozen=True)
class StepResult:
    """What a step did, over the whole global batch."""

    loss: float  # mean over all trained tokens of the step, by their weights
    grad_norm: float  # before clipping
    num_trained_tokens: int
    num_tokens: int  # of samples, without padding
    num_tiles: int
    num_samples: int
    num_skipped: int  # left out: too long, or not readable


def train_step(model, optimizer, batch: StepBatch, parallel: Parallel, step: int) -> StepResult:
    """Forward and backward over the micro-batches, then the optimizer.

    The gradient is of the mean loss over all trained tokens of the global batch, weighted as
    `train.loss_weighting` says (Megatron's per-token loss), whatever the layout.

    Raises:
        TrainingError: the loss or the gradient norm is not finite; names step, rank and samples.
    """
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

    model.zero_grad_buffer()
    optimizer.zero_grad()
    micro_batches = normalize_loss_weights(batch.micro_batches, parallel)
    reports = get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=iter(micro_batches),
        model=model,
        num_microbatches=len(micro_batches),
        seq_length=micro_batches[0].tokens.shape[1],
        micro_batch_size=1,
        forward_only=False,
    )
    result = _reduce(reports, batch, parallel)
    if not math.isfinite(result["loss_sum"]):
        keys = [key for micro_batch in micro_batches for key in micro_batch.sample_keys]
        raise TrainingError(
            f"step {step}: the loss is {result['loss_sum']}; samples of rank {parallel.rank}: "
            f"{', '.join(keys)}"
        )
    updated, grad_norm, _ = optimizer.step()
    if not updated or not math.isfinite(grad_norm):
        raise TrainingError(f"step {step}: the gradient norm is {grad_norm}")
    num_trained = int(result["num_trained_tokens"])
    return StepResult(
        loss=result["loss_sum"] / max(num_trained, 1),
        grad_norm=float(grad_norm),
        num_trained_tokens=num_trained,
        num_tokens=int(result["num_tokens"]),
        num_tiles=int(result["num_tiles"]),
        num_samples=int(result["num_samples"]),
        num_skipped=int(result["num_skipped"]),
    )


def _forward_step(data_iterator, model):
    micro_batch: MicroBatch = next(data_iterator)
    weights, loss_mask = micro_batch.weights(), micro_batch.loss_mask()

    def loss(losses: Tensor):
        loss_sum = (losses.float() * weights).sum()
        num_trained = loss_mask.sum().to(torch.int)
        return loss_sum, num_trained, (loss_sum.detach().double(), num_trained.double())

    return model(micro_batch), loss


_COUNTS = (
    "loss_sum",
    "num_trained_tokens",
    "num_tokens",
    "num_tiles",
    "num_samples",
    "num_skipped",
)


def _reduce(reports, batch: StepBatch, parallel: Parallel) -> dict[str, float]:
    """Sum the step's counts over all data ranks; losses live on last stages only."""
    totals = torch.zeros(len(_COUNTS), dtype=torch.float64, device=platform.current().device())
    if parallel.is_last_stage and parallel.tensor_rank == 0:
        for loss_sum, num_trained in reports:
            totals[0] += loss_sum
            totals[1] += num_trained
    if parallel.is_model_parallel_main:
        for micro_batch in batch.micro_batches:
            totals[2] += micro_batch.num_real_tokens
            totals[3] += micro_batch.num_tiles
            totals[4] += len(micro_batch.sample_keys)
        totals[5] += len(batch.skipped)
    dist.all_reduce(totals)
    return dict(zip(_COUNTS, totals.tolist(), strict=True))
