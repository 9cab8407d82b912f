"""An encoder that every process has whole (`parallel.vision: tile_parallel`), for Megatron-core."""

from __future__ import annotations

from megatron.core.dist_checkpointing.mapping import ShardedTensor
from torch import nn

from nvlm.parallel.groups import Parallel


def mark_whole(encoder: nn.Module) -> None:
    """Undo Megatron-core's marks: a parameter that one process has all of is not split."""
    for parameter in encoder.parameters():
        parameter.tensor_model_parallel = False  # type: ignore[attr-defined]


def mark_copies(entries: dict, prefix: str, parallel: Parallel) -> None:
    """Tell the encoders of all processes apart: one of them is saved."""
    copy = (parallel.pipeline_rank, parallel.tensor_rank, parallel.groups.dp_cp.rank())
    for name, entry in entries.items():
        if name.startswith(prefix) and isinstance(entry, ShardedTensor):
            entry.replica_id = copy
