"""Each row's tokens shared out over the context-parallel ranks.

As Megatron-core and Transformer Engine expect it of packed documents: each is as long as a multiple
of twice the number of ranks, and cut into as many equal chunks; rank r has chunk r and the r-th
from the end, so that attention, which sees what came before, costs all ranks the same. For that
every document gets tokens of padding at its end, which none of its own see, and which nothing is
trained on. Rows of a step are then of one length again: what is missing is one more document.

Tiles are shared out in their order; `gather_images` brings together the tokens that they become.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nvlm.batch import MicroBatch, RowPart
from nvlm.parallel.groups import Parallel
from nvlm.parallel.tiles import share_sizes


def with_parts(
    micro_batches: Sequence[MicroBatch], num_tiles: Sequence[int], parallel: Parallel
) -> list[MicroBatch]:
    """The same micro-batches of a step, in host memory, with this rank's part of each.

    Args:
        num_tiles: of each micro-batch, whoever encodes them.
    """
    size = parallel.context_size
    if size == 1:
        return list(micro_batches)
    # With sequence parallelism, tensor ranks share a rank's tokens evenly.
    multiple = 2 * size * parallel.row_multiple
    lengths = [padded_starts(m.document_starts, size)[-1] for m in micro_batches]
    length = -(-max(lengths, default=0) // multiple) * multiple
    return [
        replace(batch, part=row_part(batch, tiles, length, parallel.context_rank, size))
        for batch, tiles in zip(micro_batches, num_tiles, strict=True)
    ]


def padded_starts(starts: Sequence[int], size: int) -> list[int]:
    """Where documents begin, and the last ends, once each is padded for `size` ranks."""
    lengths = [-(-(end - start) // (2 * size)) * 2 * size for start, end in pairwise(starts)]
    return np.cumsum([0, *lengths]).tolist()


def row_part(batch: MicroBatch, num_tiles: int, length: int, rank: int, size: int) -> RowPart:
    """Of context-parallel rank `rank`, of a row padded to `length`."""
    own_starts, starts = batch.document_starts, padded_starts(batch.document_starts, size)
    positions = np.empty(starts[-1], np.int64)  # in the row as it is
    is_padding = np.zeros(length, np.bool_)
    for (start, end), (own_start, own_end) in zip(
        pairwise(starts), pairwise(own_starts), strict=True
    ):
        positions[start:end] = np.minimum(np.arange(end - start) + own_start, own_end - 1)
        is_padding[start + own_end - own_start : end] = True
    if length > starts[-1]:
        is_padding[starts[-1] :] = True
        positions = np.append(positions, np.full(length - starts[-1], own_starts[-1] - 1))
        starts = [*starts, length]
    of_ranks = [own_positions(starts, number, size) for number in range(size)]
    mine = of_ranks[rank]
    row_order = np.empty(length, np.int64)
    row_order[np.concatenate(of_ranks)] = np.arange(length)
    tiles_of_ranks = share_sizes(num_tiles, size)
    image_positions, image_rows = _images(batch, positions[mine], is_padding[mine], tiles_of_ranks)
    return RowPart(
        sources=torch.from_numpy(positions[mine]),
        is_padding=torch.from_numpy(is_padding[mine]),
        image_positions=torch.from_numpy(image_positions),
        image_rows=torch.from_numpy(image_rows),
        row_order=torch.from_numpy(row_order),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        document_starts=tuple(starts),
        num_tiles=tuple(tiles_of_ranks),
    )


def own_positions(starts: Sequence[int], rank: int, size: int) -> np.ndarray:
    """The positions of the padded row, whose documents begin at `starts`, that a rank has."""
    chunks = []
    for start, end in pairwise(starts):
        chunk = (end - start) // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            chunks.append(np.arange(start + number * chunk, start + (number + 1) * chunk))
    return np.concatenate(chunks)


def _images(
    batch: MicroBatch, sources: np.ndarray, is_padding: np.ndarray, num_tiles: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """`image_positions` and `image_rows` of a part with these tokens of the row."""
    is_image = batch.image_mask[0].numpy()
    image_positions = np.flatnonzero(is_image[sources] & ~is_padding)
    if not len(image_positions):
        return image_positions, image_positions
    numbers = np.cumsum(is_image)[sources[image_positions]] - 1  # of the row's image tokens
    per_tile = int(is_image.sum()) // sum(num_tiles)
    tiles, within = np.divmod(numbers, per_tile)
    ends = np.cumsum(num_tiles)
    ranks = np.searchsorted(ends, tiles, side="right")
    tiles += ranks * max(num_tiles) - (ends - num_tiles)[ranks]
    return image_positions, tiles * per_tile + within


def gather_images(visual_nqh: Tensor, part: RowPart, group: dist.ProcessGroup) -> Tensor:
    """The image tokens of a part [image tokens here, h]; gradients go back to who made them.

    Args:
        visual_nqh: of the tiles that this rank encodes; of at least one tile.
    """
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    if missing := max(part.num_tiles) - len(visual_nqh):
        nothing = visual_nqh.new_zeros(missing, *visual_nqh.shape[1:])
        visual_nqh = torch.cat([visual_nqh, nothing])
    everything = gather_from_sequence_parallel_region(visual_nqh, group=group)
    return everything.flatten(0, 1).index_select(0, part.image_rows)
