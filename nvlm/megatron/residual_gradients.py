"""Residual additions that keep no activations where nobody asked for gradients.

What is wrong: Megatron-core 0.16.1 turns gradients on for the additions at the end of attention and
MLP, whatever the caller said: a frozen encoder, or generation, would keep every residual of every
layer alive.
What is done: the layers add in whatever mode the caller is in.
When the pin moves: `bias_dropout_add_exec_handler` of the TransformerLayer.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlock


def follow_gradient_mode(block: TransformerBlock) -> None:
    """Let a caller's `no_grad` reach the residual additions of `block`."""
    for layer in block.layers:
        layer.bias_dropout_add_exec_handler = nullcontext  # type: ignore[assignment]
