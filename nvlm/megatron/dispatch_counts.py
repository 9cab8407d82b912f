"""Numbers of tokens for experts on other processes, as an all-to-all takes them.

What is wrong: Megatron-core 0.16.1 hands an all-to-all how many tokens go where as an array of
numbers where it counted them on a GPU, and as a tensor where it counted them on the host, which
torch refuses.
What is done: they are numbers on both.
When the pin moves: `maybe_move_tensor_to_cpu` in megatron/core/transformer/moe/moe_utils.py, as the
token dispatchers use it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def use_numbers() -> None:
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    if token_dispatcher.maybe_move_tensor_to_cpu is moe_utils.maybe_move_tensor_to_cpu:
        token_dispatcher.maybe_move_tensor_to_cpu = _to_host


def _to_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    from megatron.core.transformer.moe.moe_utils import maybe_move_tensor_to_cpu

    moved = maybe_move_tensor_to_cpu(tensor, as_numpy, record_stream)
    return moved.numpy() if as_numpy and isinstance(moved, Tensor) else moved
