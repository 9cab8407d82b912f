"""Checkpoints that a thread beside training writes, over a process group of its own.

What is wrong: Megatron-core 0.16.1's `dist_checkpointing.save` speaks over the default group, on
which training's thread has its own messages at the time; two threads on one group hang or mix them
up. Its asynchronous way speaks there too (each look whether all are done is an all-reduce of it,
and a barrier comes at the end), and writes in forked processes: docs/experiments.md says why not.
What is done: the steps of `save`, one by one, over a given group. The files are the same ones.
When the pin moves: `dist_checkpointing.save`, and whether it takes a process group.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedStateDict


def save_over(
    group: dist.ProcessGroup | None,
    gather: Callable[[Any], list[Any]],
    sharded_state_dict: ShardedStateDict,
    folder: Path,
    done: Callable[[], None],
    content_metadata: dict | None = None,
) -> None:
    """Write a checkpoint into the empty `folder`; every rank calls this.

    Args:
        gather: what a value is on every rank, over `group`.
        done: see `in_process_writer`.

    Raises:
        CheckpointingException: the ranks' tensors do not make up whole ones.
    """
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.serialization import _CONTENT_METADATA_KEY
    from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
    from megatron.core.dist_checkpointing.strategies.common import TorchCommonSaveStrategy
    from megatron.core.dist_checkpointing.validation import validate_sharding_integrity

    from nvlm.megatron.in_process_writes import write_sharded

    state = dict(sharded_state_dict)
    if content_metadata is not None:
        state[_CONTENT_METADATA_KEY] = content_metadata
    sharded, common = save_preprocess(state, validate_access_integrity=False)
    validate_sharding_integrity(gather([entry.without_data() for entry in nested_values(sharded)]))
    TorchCommonSaveStrategy("torch", 1).save_common(common, folder)
    write_sharded(cast("ShardedStateDict", sharded), folder, done, group)
    if dist.get_rank() == 0:
        save_config(CheckpointingConfig("torch_dist", 1), str(folder))
