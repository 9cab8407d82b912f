"""One process per model replica reads the data; here it reaches the others.

The text side of a micro-batch is small and goes to the whole model-parallel group. Tiles are large
and go only to the tensor-parallel group of the first pipeline stage, where the vision encoder is.
A whole step is exchanged before its schedule starts, so no collective of the data path can meet one
of the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist

from nvlm import platform
from nvlm.batch import StepBatch
from nvlm.errors import DataError
from nvlm.failures import explain
from nvlm.parallel.groups import Parallel


def next_step_batch(loader: Iterator[StepBatch] | None, parallel: Parallel) -> StepBatch | None:
    """The next step's batch on this process's device; None when the data has ended.

    `loader` is ignored on all but the model-parallel main process.

    Raises:
        DataError: the reading process failed; every process of the replica raises the same.
    """
    step: StepBatch | None = None
    failure: str | None = None
    if parallel.is_model_parallel_main:
        assert loader is not None, "the main process of a replica reads the data"
        try:
            step = next(loader, None)
        except Exception as error:
            failure = explain(error)
            if failure is None:
                raise
    device = platform.current().device()
    group = parallel.groups.mp
    if dist.get_world_size(group) == 1:
        if failure:
            raise DataError(failure)
        return step and _on_device(step, [m.tiles for m in step.micro_batches], device)

    tiles = [micro_batch.tiles for micro_batch in step.micro_batches] if step else []
    shapes = [tuple(t.shape) for t in tiles]
    text = step and replace(
        step, micro_batches=[micro_batch.without_tiles() for micro_batch in step.micro_batches]
    )
    holder = [(text, shapes, failure)]
    dist.broadcast_object_list(holder, src=dist.get_global_rank(group, 0), group=group)
    text, shapes, failure = holder[0]
    if failure:
        raise DataError(failure)
    if text is None:
        return None
    if parallel.is_first_stage:
        source = dist.get_global_rank(parallel.groups.tp, 0)
        if not parallel.is_model_parallel_main:
            tiles = [torch.empty(shape, dtype=torch.uint8) for shape in shapes]
        tiles = [t.to(device).contiguous() for t in tiles]
        for t in tiles:
            if t.numel() and parallel.tensor_size > 1:
                dist.broadcast(t, src=source, group=parallel.groups.tp)
    else:
        tiles = [m.tiles for m in text.micro_batches]
    return _on_device(text, tiles, device)


def _on_device(step: StepBatch, tiles: list[torch.Tensor], device: torch.device) -> StepBatch:
    micro_batches = [
        replace(micro_batch, tiles=t).to(device)
        for micro_batch, t in zip(step.micro_batches, tiles, strict=True)
    ]
    return replace(step, micro_batches=micro_batches)
