"""One process in the place of another of the layout, alone: to build what that one would hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from nvlm.config.schema import RunConfig
from nvlm.parallel.groups import Parallel, initialize, shut_down


@contextmanager
def stand_in(config: RunConfig, pipeline_rank: int) -> Iterator[Parallel]:
    """Process groups as the first tensor rank of pipeline stage `pipeline_rank` would have them.

    They have the right ranks and sizes and communicate nothing (torch's `fake` backend), so that
    any layout fits into one process. Data-parallel size 1.
    """
    assert not dist.is_initialized(), "this process takes part in a run"
    parallel = config.parallel
    # Megatron-core numbers processes along the tensor-parallel group first, and stages last.
    rank = pipeline_rank * (parallel.fewest_processes // parallel.pipeline)
    dist.init_process_group("fake", rank=rank, world_size=parallel.fewest_processes)
    try:
        groups = initialize(config, world_size=parallel.fewest_processes)
        assert (groups.tensor_rank, groups.pipeline_rank) == (0, pipeline_rank)
        yield groups
    finally:
        shut_down()
