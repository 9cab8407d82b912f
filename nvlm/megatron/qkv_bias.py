"""A bias of queries, keys and values that is a choice of its own.

What is wrong: Megatron-core 0.16.1 gives this layer a bias wherever the other linear layers have
one, also when `add_qkv_bias` is false. InternViT-6B has biases everywhere but there.
What is done: the layer is built with what `add_qkv_bias` says.
When the pin moves: how `SelfAttention` builds `linear_qkv`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_qkv_bias(column_linear: Callable[..., Any], has_bias: bool) -> Callable[..., Any]:
    """What builds `linear_qkv` of an attention: `column_linear`, with or without a bias."""

    def linear_qkv(*args: Any, **kwargs: Any) -> Any:
        return column_linear(*args, **{**kwargs, "bias": has_bias})

    return linear_qkv
