"""How fast a step was, and how much of the devices' peak that is.

model FLOPs   of the step's real tokens, pairs of tokens within documents and tiles, forwards
              and backwards as far as the stage trains (`nvlm.sizes.flops`): padding and what is
              computed again in the backward pass do not count
TFLOP/s       model FLOPs / (seconds of the step x processes) / 1e12, waiting for data included
MFU           the same as a share of a device's peak of dense bf16 products, as in PaLM
              (arXiv 2204.02311, appendix B); none where the device's peak is not known
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from nvlm import platform
from nvlm.batch import StepBatch
from nvlm.parallel.groups import Parallel
from nvlm.plan.hardware import Card, card_of_device
from nvlm.sizes.flops import StepFlops


@dataclass(frozen=True)
class StepWork:
    """What a step computed."""

    flops: int  # model FLOPs over all data ranks
    # The FLOPs of the data rank that had most, over the mean of all: the others wait for it.
    imbalance: float
    # The same of the seconds that data ranks took to their own gradients.
    seconds_imbalance: float = 1.0


def step_work(
    batch: StepBatch, flops: StepFlops, parallel: Parallel, own_seconds: float = 0.0
) -> StepWork:
    """All processes call this with their data rank's share of the step.

    Args:
        own_seconds: that this process took until the gradients of its micro-batches were there.
    """
    own = sum(
        flops.of_documents(m.num_real_tokens, m.num_real_token_pairs, m.num_tiles)
        for m in batch.micro_batches
    )
    device = platform.current().device()
    # Stages behind the first have no tiles; a replica counts as its reading process does.
    counted = (own, own_seconds) if parallel.is_model_parallel_main else (0, 0)
    values = torch.tensor([counted, counted], dtype=torch.float64).to(device)
    dist.all_reduce(values[0])
    dist.all_reduce(values[1], op=dist.ReduceOp.MAX)
    totals, largest = values.tolist()  # at once: the host waits for the device
    means = [total / parallel.data_size for total in totals]
    ratios = [most / mean if mean else 1.0 for most, mean in zip(largest, means, strict=True)]
    return StepWork(int(totals[0]), *ratios)


def device_card() -> Card | None:
    """The card that a process computes on; None where it is not known."""
    return card_of_device(platform.current().device_name())


def rates(
    work: StepWork,
    num_tokens: int,
    num_tiles: int,
    num_processes: int,
    seconds: float,
    card: Card | None,
) -> dict[str, float]:
    """The keys of `metrics.jsonl` that say how fast a step of so many seconds was."""
    per_device = work.flops / seconds / num_processes
    return {
        "tokens_per_second": num_tokens / seconds,
        "tiles_per_second": num_tiles / seconds,
        "tflops_per_second": per_device / 1e12,
        **({"mfu": per_device / card.peak_flops} if card else {}),
        "rank_imbalance": work.imbalance,
        "rank_seconds_imbalance": work.seconds_imbalance,
    }


def explain_peak(card: Card | None) -> str | None:
    """What MFU is measured against, said once; None where there is no MFU."""
    return card and (
        f"MFU is of {card.peak_flops / 1e12:,.0f} TFLOP/s ({card.name}, dense bf16), encoder "
        "included; padding and recomputation do not count"
    )
