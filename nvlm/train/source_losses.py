"""Losses apart by the source of each token, summed where the losses are: no host waits for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvlm.batch import MicroBatch


def sums_by_source(weighted_losses: Tensor, micro_batch: MicroBatch, num_sources: int) -> Tensor:
    """[2, num_sources] float64: the sums of weighted losses, and of weights.

    Sums of masked rows and not scattered additions, which a GPU does in any order.

    Args:
        weighted_losses: [1, t].
    """
    numbers = micro_batch.source_numbers
    if num_sources == 0 or numbers is None:
        return weighted_losses.new_zeros((2, num_sources), dtype=torch.float64)
    values = torch.stack([weighted_losses.detach()[0], micro_batch.weights()[0]]).double()
    is_of_source = numbers == torch.arange(num_sources, device=numbers.device)[:, None]
    return torch.where(is_of_source, values[:, None], 0.0).sum(-1)


def losses_by_source(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """Source -> mean loss, of those of which something is trained.

    Args:
        sums: those of `sums_by_source`, one after another.
    """
    losses, weights = sums[: len(names)], sums[len(names) :]
    return {
        name: loss / weight
        for name, loss, weight in zip(names, losses, weights, strict=True)
        if weight > 0
    }
