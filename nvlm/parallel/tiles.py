"""A step's tiles shared out over the processes of a model replica, and their features gathered.

With `parallel.vision: tile_parallel` each of the tensor x pipeline processes reads, decodes and
encodes consecutive tiles of the step; the numbers of two of them differ by one at most, but for
tiles of samples that turn out to be damaged. Features go to the processes of the first pipeline
stage, all of which need all: first from later stages to the process of the same tensor rank, so
that between machines each travels once, then among the tensor ranks. Shares are numbered in that
order, so what is gathered is in the order of the tiles.

Shape suffixes: m tiles of a share, n tiles of the step, q tokens of a tile, c their channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm.parallel.groups import Parallel


class Share(NamedTuple):
    """Which of a replica's shares."""

    number: int
    num_shares: int

    def tiles(self, num_tiles: int) -> tuple[int, int]:
        """From which to which (exclusive) of so many tiles."""
        starts = [0, *accumulate(share_sizes(num_tiles, self.num_shares))]
        return starts[self.number], starts[self.number + 1]


def own_share(parallel: Parallel) -> Share:
    """This process's; the one that reads the text has number 0."""
    number = share_number(parallel.tensor_rank, parallel.pipeline_rank, parallel.pipeline_size)
    return Share(number, parallel.tensor_size * parallel.pipeline_size)


def share_sizes(num_tiles: int, num_shares: int) -> list[int]:
    """Tiles of each share, in the order of the tiles."""
    least, num_larger = divmod(num_tiles, num_shares)
    return [least + (number < num_larger) for number in range(num_shares)]


def share_number(tensor_rank: int, pipeline_rank: int, pipeline_size: int) -> int:
    """Whose share is which."""
    return tensor_rank * pipeline_size + pipeline_rank


def without_dropped(
    tiles: Tensor, num_planned: int, dropped: Sequence[tuple[int, int]], share: Share
) -> tuple[Tensor, list[int]]:
    """A share's tiles that are left, and how many every share has left.

    Args:
        tiles: [m, ...], as planned.
        num_planned: tiles of the step as planned.
        dropped: ranges (from, to) of the step's tiles.
    """
    sizes = share_sizes(num_planned, share.num_shares)
    if not dropped:
        return tiles, sizes
    is_kept = torch.ones(num_planned, dtype=torch.bool)
    for start, stop in dropped:
        is_kept[start:stop] = False
    start, stop = share.tiles(num_planned)
    left = [int(part.sum()) for part in is_kept.split(sizes)]
    kept = is_kept[start:stop].nonzero()[:, 0]  # found on the host, which waits for no device
    return tiles[kept.to(tiles.device)], left


def gather_features(
    features_mqc: Tensor, sizes: Sequence[int], parallel: Parallel
) -> Tensor | None:
    """The features of all the step's tiles [n, q, c] on the first stage's processes; else None.

    Args:
        sizes: tiles of each share.
    """
    tensor_size, pipeline_size = parallel.tensor_size, parallel.pipeline_size
    longest, shape = max(sizes), features_mqc.shape[1:]
    gathered = features_mqc.contiguous()
    if num_missing := longest - features_mqc.shape[0]:  # a collective takes parts of one size
        gathered = torch.cat([features_mqc, features_mqc.new_zeros(num_missing, *shape)])
    if pipeline_size > 1:
        group, own = parallel.groups.pp, gathered
        parts = None
        if parallel.is_first_stage:
            gathered = own.new_empty(pipeline_size * longest, *shape)
            parts = list(gathered.split(longest))
        dist.gather(own, parts, dst=dist.get_global_rank(group, 0), group=group)
    if not parallel.is_first_stage:
        return None
    if tensor_size > 1:
        own = gathered
        gathered = own.new_empty(tensor_size * pipeline_size * longest, *shape)
        dist.all_gather_into_tensor(gathered, own, group=parallel.groups.tp)
    if min(sizes) == longest:
        return gathered
    parts = zip(gathered.split(longest), sizes, strict=True)
    return torch.cat([part[:size] for part, size in parts])
