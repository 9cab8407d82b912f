"""Start the processes' groups and describe this process's place in them."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist

from nvlm import platform
from nvlm.config.checks import check_world_size
from nvlm.config.schema import ParallelConfig, RunConfig
from nvlm.launch import launched
from nvlm.megatron.left_groups import leave_model_parallel
from nvlm.parallel.attempt import COLLECTIVE_TIMEOUT, attempt_store
from nvlm.parallel.watch import stop_watching, watch_others
from nvlm.platform.megatron_calls import GROUP_ARGUMENTS, seed_random_numbers
from nvlm.rows import STACKED_EXPERTS

if TYPE_CHECKING:  # loading Megatron-core is the platform's business
    from megatron.core.process_groups_config import ProcessGroupCollection

T = TypeVar("T")
# Each time that groups are made, their names in the store are others.
_times = count()


@dataclass(frozen=True)
class Parallel:
    """This process's ranks and sizes; `groups` is what Megatron-core knows of them."""

    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    context_rank: int
    context_size: int
    pipeline_rank: int
    pipeline_size: int
    # Model chunks of each pipeline stage.
    virtual_size: int
    data_rank: int
    data_size: int
    # With context parallelism: what the number of a rank's tokens has to be a multiple of.
    row_multiple: int
    # Of the processes that share the experts of a layer; groups of their own, which cut across
    # those of tensor and data parallelism.
    expert_rank: int
    expert_size: int
    groups: ProcessGroupCollection

    def sizes(self) -> str:
        """The layout, as messages say it."""
        context = f"context {self.context_size} x " if self.context_size > 1 else ""
        return (
            f"tensor {self.tensor_size} x {context}pipeline {self.pipeline_size} x data "
            f"{self.data_size}"
        )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline_rank == self.pipeline_size - 1

    def holds_embedding(self, vp_stage: int | None) -> bool:
        """Whether chunk `vp_stage` of this stage is the model's first; None: the only chunk."""
        return self.is_first_stage and vp_stage in (None, 0)

    def holds_output_layer(self, vp_stage: int | None) -> bool:
        """Whether chunk `vp_stage` of this stage is the model's last; None: the only chunk."""
        return self.is_last_stage and vp_stage in (None, self.virtual_size - 1)

    def alike(self, key: str) -> dist.ProcessGroup:
        """The ranks that hold what this one holds of the sharded tensor of this key.

        Of experts, those of whatever data-, context- and tensor-parallel rank that have the same
        ones.
        """
        return self.groups.expt_dp if STACKED_EXPERTS in key else self.groups.dp_cp

    @property
    def is_model_parallel_main(self) -> bool:
        """The process of each model replica that reads data for it: texts, or all."""
        return self.tensor_rank == 0 and self.context_rank == 0 and self.pipeline_rank == 0


def world_size_from_environment() -> int:
    """How many processes torchrun (or Slurm through it) started; 1 when run alone."""
    return launched().world_size


def is_main_process() -> bool:
    """Whether this process speaks for the run, known before any group exists."""
    return launched().rank == 0


def reading_ranks(layout: ParallelConfig, world_size: int) -> range:
    """The ranks that will read data, known before any group exists.

    All, where each reads the tiles that it encodes; else those that will be
    `is_model_parallel_main`.
    """
    return range(world_size) if layout.shares_tiles else _main_ranks(layout, world_size)


def _main_ranks(layout: ParallelConfig, world_size: int) -> range:
    # Megatron-core numbers a layout's tensor ranks first, then context ranks, data ranks, and
    # pipeline stages.
    return range(0, world_size // layout.pipeline, layout.tensor * layout.context)


def initialize(
    config: RunConfig,
    world_size: int | None = None,
    timeout: datetime.timedelta = COLLECTIVE_TIMEOUT,
) -> Parallel:
    """Create the process groups of `config.parallel` and seed Megatron-core's RNG tracker.

    Those of an earlier layout are left first: a process may run several trainings in turn.
    Under torchrun the rendezvous comes from its environment; alone, a world of one is made without
    opening a port.

    Args:
        timeout: of a collective; groups that exist already keep theirs.

    Raises:
        ConfigError: the number of processes does not fit the layout or the batch.
    """
    check_world_size(config, world_size or world_size_from_environment())
    device_platform = platform.current()
    device_platform.bind_local_rank(launched().local_rank)
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    initialize_world(timeout)
    leave_model_parallel()
    virtual = config.parallel.virtual_pipeline
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.parallel.tensor,
        context_parallel_size=config.parallel.context,
        pipeline_model_parallel_size=config.parallel.pipeline,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        # Experts are whole: shared among processes, and not cut (docs/experts.md).
        expert_model_parallel_size=config.parallel.expert,
        expert_tensor_parallel_size=1,
        # Its own default is another than torch's group has.
        distributed_timeout_minutes=max(1, timeout // datetime.timedelta(minutes=1)),
        **GROUP_ARGUMENTS,
    )
    seed_random_numbers(config.train.seed)
    parallel = Parallel(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel_state.get_context_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        virtual_size=virtual,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        row_multiple=config.parallel.tensor if config.parallel.sequence else 1,
        expert_rank=parallel_state.get_expert_model_parallel_rank(),
        expert_size=parallel_state.get_expert_model_parallel_world_size(),
        groups=ProcessGroupCollection.use_mpu_process_groups(),
    )
    mains = _main_ranks(config.parallel, parallel.world_size)
    assert parallel.is_model_parallel_main == (parallel.rank in mains)
    return parallel


def initialize_world(timeout: datetime.timedelta = COLLECTIVE_TIMEOUT) -> None:
    """Make the group of all processes, unless there is one.

    Under torchrun the rendezvous comes from its environment; alone, a world of one is made without
    opening a port.
    """
    if dist.is_initialized():
        return
    here = launched()
    store = attempt_store() if here.world_size > 1 else dist.HashStore()
    dist.init_process_group(
        platform.current().distributed_backend(),
        timeout=timeout,
        store=dist.PrefixStore(f"groups{next(_times)}", store),
        rank=here.rank,
        world_size=here.world_size,
    )
    watch_others()


def alone(groups: ProcessGroupCollection) -> ProcessGroupCollection:
    """Groups in which this process has all of every layer, for a part that each process holds."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    # Where tiles are shared there is no context parallelism, so that this group has one process.
    # Megatron-core makes it anyway; a new group for each would be one rendezvous after another.
    assert groups.cp.size() == 1
    return ProcessGroupCollection(
        tp=groups.cp, pp=groups.cp, cp=groups.cp, dp=groups.dp, dp_cp=groups.dp_cp
    )


def shut_down() -> None:
    """Leave the process groups; safe to call when none exist."""
    parallel_state = sys.modules.get("megatron.core.parallel_state")
    if parallel_state is not None and parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        stop_watching()
        dist.destroy_process_group()


def leave_groups(has_failed: bool) -> None:
    """Leave the process groups where a run ends, but not where it failed and has other processes.

    Others may wait in a collective then, and would be waited for: this process, and what it has to
    say, would hang until the collective's time is up.
    """
    if not has_failed or not dist.is_initialized() or dist.get_world_size() == 1:
        shut_down()


@contextmanager
def leaving_groups() -> Iterator[None]:
    """`leave_groups` at the end of the block, or where it fails."""
    try:
        yield
    except BaseException:
        leave_groups(has_failed=True)
        raise
    leave_groups(has_failed=False)


def broadcast_object(value: T, source: int = 0, group: dist.ProcessGroup | None = None) -> T:
    """`value` of global rank `source`, on every rank of `group`."""
    holder = [value]
    dist.broadcast_object_list(holder, src=source, group=group)
    return holder[0]
