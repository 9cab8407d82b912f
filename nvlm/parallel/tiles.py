"""A step's tiles shared out over the processes of a model replica, and their features gathered.

With `parallel.vision: tile_parallel` each of the tensor x pipeline processes encodes consecutive
tiles of the step; the numbers of two of them differ by one at most. Features go to the processes
of the first pipeline stage, all of which need all: first from later stages to the process of the
same tensor rank, so that between machines each travels once, then among the tensor ranks. Shares
are numbered in that order, so what is gathered is in the order of the tiles.

Shape suffixes: m tiles of a share, n tiles of the step, q tokens of a tile, c their channels.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from nvlm.parallel.groups import Parallel


def share_sizes(num_tiles: int, num_shares: int) -> list[int]:
    """Tiles of each share, in the order of the tiles."""
    least, num_larger = divmod(num_tiles, num_shares)
    return [least + (number < num_larger) for number in range(num_shares)]


def share_number(tensor_rank: int, pipeline_rank: int, pipeline_size: int) -> int:
    """Whose share is which."""
    return tensor_rank * pipeline_size + pipeline_rank


def scatter_tiles(
    tiles: list[Tensor], num_tiles: int, image_size: int, parallel: Parallel, device: torch.device
) -> Tensor:
    """This process's share of the tiles, on `device`: [m, 3, image_size, image_size] uint8.

    Args:
        tiles: of each micro-batch, on the process that reads for the model replica; not looked at
            on others.
        num_tiles: of the step, the same on every process of the replica.
        image_size: pixels of a tile's side.
    """
    tensor_size, pipeline_size = parallel.tensor_size, parallel.pipeline_size
    sizes = share_sizes(num_tiles, tensor_size * pipeline_size)
    own = share_number(parallel.tensor_rank, parallel.pipeline_rank, pipeline_size)
    if len(sizes) == 1:
        return torch.cat(tiles).to(device)
    if num_tiles == 0:
        return torch.empty(0, 3, image_size, image_size, dtype=torch.uint8, device=device)
    # A collective takes parts of one size. A smaller share is sent with the tile that follows it,
    # the last one with an empty tile.
    longest = sizes[0]
    parts = None
    if parallel.is_model_parallel_main:
        empty = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        whole = torch.cat([*tiles, empty]).to(device)
        starts = [0, *accumulate(sizes)]
        # Megatron-core numbers the processes of the group along the tensor ranks first.
        places = [divmod(place, tensor_size) for place in range(len(sizes))]
        numbers = [share_number(tensor, stage, pipeline_size) for stage, tensor in places]
        parts = [whole[starts[number] : starts[number] + longest] for number in numbers]
    received = torch.empty(longest, 3, image_size, image_size, dtype=torch.uint8, device=device)
    group = parallel.groups.mp
    dist.scatter(received, parts, src=dist.get_global_rank(group, 0), group=group)
    return received[: sizes[own]]


def gather_features(features_mqc: Tensor, num_tiles: int, parallel: Parallel) -> Tensor | None:
    """The features of all the step's tiles [n, q, c] on the first stage's processes; else None."""
    tensor_size, pipeline_size = parallel.tensor_size, parallel.pipeline_size
    sizes = share_sizes(num_tiles, tensor_size * pipeline_size)
    longest, shape = sizes[0], features_mqc.shape[1:]
    gathered = features_mqc.contiguous()
    if features_mqc.shape[0] < longest:
        gathered = torch.cat([features_mqc, features_mqc.new_zeros(1, *shape)])
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
    if sizes[-1] == longest:
        return gathered
    parts = zip(gathered.split(longest), sizes, strict=True)
    return torch.cat([part[:size] for part, size in parts])
