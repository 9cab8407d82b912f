"""One process per model replica reads the data; here it reaches the others.

The text side of a micro-batch is small and goes to the whole model-parallel group. Tiles are large
and go only to the tensor-parallel group of the first pipeline stage, where the vision encoder is
or, where every process has one, each to the process that encodes it (`nvlm.parallel.tiles`).
A whole step is exchanged before its schedule starts, so no collective of the data path can meet one
of the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist

from nvlm import platform
from nvlm.batch import StepBatch, TileShare
from nvlm.errors import DataError
from nvlm.failures import explain
from nvlm.parallel.groups import Parallel
from nvlm.parallel.tiles import scatter_tiles


def next_step_batch(
    loader: Iterator[StepBatch] | None, parallel: Parallel, shares_tiles: bool
) -> StepBatch | None:
    """The next step's batch on this process's device; None when the data has ended.

    Args:
        loader: ignored on all but the model-parallel main process.
        shares_tiles: every process of the model-parallel group gets its share of the step's tiles
            (`parallel.vision: tile_parallel`), not the first stage all of them.

    Raises:
        DataError: this process could not read; the others of its replica wait until they end.
    """
    step: StepBatch | None = None
    if parallel.is_model_parallel_main:
        assert loader is not None, "the main process of a replica reads the data"
        try:
            step = next(loader, None)
        except Exception as error:
            failure = explain(error)
            if failure is None or isinstance(error, DataError):
                raise
            raise DataError(failure) from error
    device = platform.current().device()
    group = parallel.groups.mp
    tiles = [micro_batch.tiles for micro_batch in step.micro_batches] if step else []
    shapes = [tuple(t.shape) for t in tiles]
    if dist.get_world_size(group) == 1:
        if step and shares_tiles:
            return _with_share(step, tiles, shapes, parallel, device)
        return step and _on_device(step, tiles, device)
    text = step and replace(
        step, micro_batches=[micro_batch.without_tiles() for micro_batch in step.micro_batches]
    )
    holder = [(text, shapes)]
    dist.broadcast_object_list(holder, src=dist.get_global_rank(group, 0), group=group)
    text, shapes = holder[0]
    if text is None:
        return None
    if shares_tiles:
        return _with_share(text, tiles, shapes, parallel, device)
    if parallel.is_first_stage:
        source = dist.get_global_rank(parallel.groups.tp, 0)
        if not parallel.is_model_parallel_main:
            tiles = [torch.empty(shape, dtype=torch.uint8) for shape in shapes]
        tiles = [t.to(device, non_blocking=True).contiguous() for t in tiles]
        for t in tiles:
            if t.numel() and parallel.tensor_size > 1:
                dist.broadcast(t, src=source, group=parallel.groups.tp)
    else:
        tiles = [m.tiles for m in text.micro_batches]
    return _on_device(text, tiles, device)


def _with_share(
    step: StepBatch,
    tiles: list[torch.Tensor],
    shapes: list[tuple[int, ...]],
    parallel: Parallel,
    device: torch.device,
) -> StepBatch:
    """`tiles` are those of the process that reads, `shapes` theirs."""
    num_tiles = [shape[0] for shape in shapes]
    own = scatter_tiles(tiles, sum(num_tiles), shapes[0][-1], parallel, device)
    text = [micro_batch.without_tiles().to(device) for micro_batch in step.micro_batches]
    return replace(step, micro_batches=text, tile_share=TileShare(own, num_tiles))


def _on_device(step: StepBatch, tiles: list[torch.Tensor], device: torch.device) -> StepBatch:
    """All copies of the step are under way when this returns; the device waits for them in turn."""
    micro_batches = [
        replace(micro_batch, tiles=t)
        .each(lambda tensor: platform.current().pinned(tensor))
        .to(device)
        for micro_batch, t in zip(step.micro_batches, tiles, strict=True)
    ]
    return replace(step, micro_batches=micro_batches)
