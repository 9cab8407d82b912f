"""Every two processes exchange data once: a round is as many pairs at a time as there can be."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from nvlm import platform
from nvlm.parallel.groups import broadcast_object


@dataclass(frozen=True)
class Pair:
    """What two processes reached, both ways at the same time."""

    ranks: tuple[int, int]
    bytes_per_second: float


def partner(rank: int, round_number: int, num_ranks: int) -> int | None:
    """Whom `rank` meets in a round of `num_ranks - 1` (`num_ranks` where odd); None: nobody.

    The circle method of tournaments: the last place stands still, the others turn by one a round.
    """
    size = num_ranks + num_ranks % 2
    turning = size - 1
    if rank == turning:
        other = next(r for r in range(turning) if 2 * r % turning == round_number % turning)
    else:
        other = (round_number - rank) % turning
        if other == rank:
            other = turning
    return other if other < num_ranks else None


def num_rounds(num_ranks: int) -> int:
    return num_ranks - 1 + num_ranks % 2


def measure_pairs(num_bytes: int, seconds: float) -> tuple[list[Pair], int]:
    """Pairs, measured round by round until time is up; every process calls this.

    Returns them on all processes, and how many rounds were done.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    here = platform.current()
    outgoing = torch.ones(num_bytes, dtype=torch.uint8, device=here.device())
    incoming = torch.empty_like(outgoing)
    own, began, done = [], time.monotonic(), 0
    for number in range(num_rounds(size)):
        other = partner(rank, number, size)
        # Once to connect, once to measure.
        for _ in range(2):
            dist.barrier()
            started = time.perf_counter()
            if other is not None:
                _exchange(outgoing, incoming, other)
            taken = time.perf_counter() - started
        if other is not None and rank < other:
            own.append(Pair((rank, other), num_bytes / taken))
        done += 1
        if broadcast_object(time.monotonic() - began > seconds):
            break
    gathered: list = [None] * size
    dist.all_gather_object(gathered, own)
    return [pair for part in gathered for pair in part], done


def _exchange(outgoing: torch.Tensor, incoming: torch.Tensor, other: int) -> None:
    works = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, outgoing, other), dist.P2POp(dist.irecv, incoming, other)]
    )
    for work in works:
        work.wait()
    platform.current().synchronize()
