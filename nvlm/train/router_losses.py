"""The losses of routers of experts in a step: how much they weigh in it, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm import platform
from nvlm.batch import MicroBatch
from nvlm.parallel.groups import Parallel

if TYPE_CHECKING:  # Megatron-core is imported behind the platform, which nvlm.model chooses
    from nvlm.model.nvlm_d import NVLMD

# Load-balance loss, z-loss and tokens, as `nvlm.model.parts.router.RouterLosses` sums them.
NUM_SUMS = 3


def begin_router_losses(
    chunks: Sequence[NVLMD], micro_batches: Sequence[MicroBatch], parallel: Parallel
) -> None:
    """Let the routers' losses of this step be means over its tokens, whatever is trained of them.

    Nothing where there are no experts.
    """
    losses = [chunk.router_losses for chunk in chunks if chunk.router_losses is not None]
    if not losses:
        return
    sums = torch.zeros(2, dtype=torch.float64, device=platform.current().device())
    for micro_batch in micro_batches:
        padding = micro_batch.padding_mask()
        num_padding = 0 if padding is None else padding.sum()
        sums[0] += micro_batch.loss_mask().sum(dtype=torch.float64)
        sums[1] += micro_batch.tokens.numel() - num_padding
    if parallel.data_size > 1:
        dist.all_reduce(sums, group=parallel.groups.dp)
    num_trained, num_tokens = sums.unbind()
    for of_chunk in losses:
        of_chunk.begin_step((num_trained / num_tokens.clamp(min=1)).float())


def router_sums(chunks: Sequence[NVLMD]) -> Tensor:
    """[3] float64: this process's part of the sums of the step."""
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=platform.current().device())
    for chunk in chunks:
        if chunk.router_losses is not None and chunk.router_losses.sums is not None:
            sums += chunk.router_losses.sums
    return sums


def router_means(sums: Sequence[float]) -> dict[str, float]:
    """Of the sums over all processes: means over the tokens and the layers that have experts."""
    load_balance, z_loss, num_tokens = sums
    if not num_tokens:
        return {}
    return {"load_balance_loss": load_balance / num_tokens, "z_loss": z_loss / num_tokens}
