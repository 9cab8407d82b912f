"""Optimizer state of gradient buffers with several buckets, on its way to a checkpoint.

What is wrong: Megatron-core 0.16.1 joins the state of a buffer's buckets without the padding
between them, then cuts parameters out by positions that count it: all that comes after the first
padding is written shifted, and a resumed run starts from another parameter's values.
What is done: the padding is put back between the two steps. Buffers have one bucket, and nothing to
misplace, except on the first and the last stage of a pipeline when embeddings are shared: the
shared matrix has a bucket of its own. Overlapped gradient reduction makes several everywhere.
When the pin moves: `get_parameter_state_dp_zero` and `sharded_param_state_fully_reshardable` of the
distributed optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBuffer
    from megatron.core.optimizer import MegatronOptimizer
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def keep_padding_between_buckets(optimizer: MegatronOptimizer) -> None:
    """Correct what `optimizer` hands to a checkpoint."""
    for inner in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner.get_parameter_state_dp_zero = _with_padding(inner)


def _with_padding(optimizer: DistributedOptimizer) -> Callable[..., dict | None]:
    without_padding = optimizer.get_parameter_state_dp_zero

    @wraps(without_padding)
    def parameter_state(*args, **kwargs) -> dict | None:
        state: dict | None = without_padding(*args, **kwargs)
        if state is None:
            return None
        for index, buffer in enumerate(optimizer.buffers):
            for tensors in state[index].values():
                for key, value in tensors.items():
                    if isinstance(value, Tensor):
                        tensors[key] = _spread(value, buffer)
        return state

    return parameter_state


def _spread(joined: Tensor, buffer: _ParamAndGradBuffer) -> Tensor:
    """Every bucket's part of `joined` [elements without padding] at its place in `buffer`."""
    spread = torch.zeros(buffer.numel, dtype=joined.dtype)
    sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
    for bucket, part in zip(buffer.buckets, joined.split(sizes), strict=True):
        spread[bucket.offset : bucket.offset + part.numel()] = part
    return spread
