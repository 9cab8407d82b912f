"""Sums over a group of processes: whether they are right, and how fast."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from nvlm import platform

_NUM_TIMES = 3


def find_wrong_sums(group: dist.ProcessGroup) -> list[int]:
    """Ranks of `group` whose part of a sum did not arrive here as it was sent; every rank calls it.

    Each puts a number of its own into a place of its own, so that the place tells whose is wrong.
    """
    ranks = dist.get_process_group_ranks(group)
    device = platform.current().device()
    wanted = torch.tensor([rank + 1.0 for rank in ranks], device=device)
    mine = torch.zeros_like(wanted)
    mine[ranks.index(dist.get_rank())] = dist.get_rank() + 1.0
    dist.all_reduce(mine, group=group)
    return [rank for rank, is_right in zip(ranks, (mine == wanted).tolist()) if not is_right]


def measure_all_reduce(group: dist.ProcessGroup, num_bytes: int) -> float:
    """Bytes per second that each link carries at least while a group sums so many bytes.

    A ring passes 2 (n - 1) / n of them over each link: what is known as the bus bandwidth.
    """
    here = platform.current()
    data = torch.ones(num_bytes // 4, dtype=torch.float32, device=here.device())
    best = float("inf")
    for _ in range(_NUM_TIMES + 1):  # the first one connects
        dist.barrier(group=group)
        started = time.perf_counter()
        dist.all_reduce(data, group=group)
        here.synchronize()
        best = min(best, time.perf_counter() - started)
    size = dist.get_world_size(group)
    return 2 * (size - 1) / size * num_bytes / best


def measure_product(size: int) -> tuple[float, str]:
    """Operations per second of a matrix product, and a fingerprint of its result's bits.

    The numbers are small and whole, so that every sum is exact in any order and every sound device
    gives the same bits.
    """
    here = platform.current()
    generator = torch.Generator().manual_seed(1)
    left, right = (
        torch.randint(-4, 5, (size, size), generator=generator).float().to(here.device())
        for _ in range(2)
    )
    best = float("inf")
    product = left
    for _ in range(_NUM_TIMES + 1):
        here.synchronize()
        started = time.perf_counter()
        product = left @ right
        here.synchronize()
        best = min(best, time.perf_counter() - started)
    values = product.to(torch.int64)
    weights = torch.arange(1, values.numel() + 1, device=values.device).view_as(values) % 65_521
    return 2 * size**3 / best, f"{int((values * weights).sum()):x}"
