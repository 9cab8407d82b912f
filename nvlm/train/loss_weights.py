"""The weighted loss of a step: sum(w l) / sum(w) over the trained tokens of the global batch."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from nvlm import platform
from nvlm.batch import MicroBatch
from nvlm.parallel.groups import Parallel


def normalize_loss_weights(micro_batches: list[MicroBatch], parallel: Parallel) -> list[MicroBatch]:
    """Scale the weights to sum to the number of trained tokens of the global batch.

    Megatron-core divides gradients by that whole number. With weights of this sum the quotient is
    the weighted mean, whatever the weights and the layout. Weights of 0 everywhere stay.

    The factor never leaves the device: the host goes on without knowing it.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=platform.current().device())
    for micro_batch in micro_batches:
        sums[0] += micro_batch.weights().sum(dtype=torch.float64)
        sums[1] += micro_batch.loss_mask().sum(dtype=torch.float64)
    if parallel.data_size > 1:
        dist.all_reduce(sums, group=parallel.groups.dp)
    total_weight, num_trained = sums.unbind()
    factor = torch.where(total_weight == 0, 1.0, num_trained / total_weight)
    return [replace(m, loss_weights=(m.weights().double() * factor).float()) for m in micro_batches]
