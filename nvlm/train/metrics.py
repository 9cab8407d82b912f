"""The numbers of a step: what a line of `metrics.jsonl` holds."""

from __future__ import annotations

from nvlm import platform
from nvlm.train.skips import count_skipped
from nvlm.train.throughput import device_card, rates
from nvlm.train.training import StepTaken, Training


def step_record(
    training: Training, taken: StepTaken, seconds: float, data_seconds: float
) -> dict[str, float]:
    """A line of `metrics.jsonl`, but for the number of the step."""
    config, result = training.config, taken.result
    num_positions = config.train.global_batch_size * config.stage.sequence_length
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": taken.learning_rate,
        "tokens": result.num_trained_tokens,
        "all_tokens": result.num_tokens,
        "tiles": result.num_tiles,
        "samples": result.num_samples,
        "skipped": len(taken.skipped),
        "skipped_total": training.counters.num_skipped,
        "padding": 1 - result.num_tokens / num_positions,
        "seconds": seconds,
        "data_seconds": data_seconds,
        "forward_backward_seconds": result.forward_backward_seconds,
        "encode_seconds": taken.encode_seconds,
        "optimizer_seconds": result.optimizer_seconds,
        **rates(
            taken.work,
            result.num_tokens,
            result.num_tiles,
            training.parallel.world_size,
            seconds,
            device_card(),
        ),
        "peak_memory_bytes": platform.current().peak_memory_bytes(),
        **{f"skipped/{name}": number for name, number in count_skipped(taken.skipped).items()},
        **{f"repaired/{name}": number for name, number in taken.repaired.items()},
        **taken.shortened,
        **(
            {}
            if result.distillation_loss is None
            else {"distillation_loss": result.distillation_loss}
        ),
        **{f"loss/{source}": loss for source, loss in result.source_losses.items()},
        **{f"router/{name}": loss for name, loss in result.router_losses.items()},
        **{f"lr/{pattern}": rate for pattern, rate in taken.group_rates.items()},
        **{f"epochs/{source}": passes for source, passes in taken.epochs.items()},
    }
