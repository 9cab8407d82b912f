"""Recomputed layers that train after frozen embeddings.

What is wrong: what Megatron-core 0.16.1 recomputes (whole layers with `full`, their norms with
`selective`) is a single operation to autograd, whose parameters are reached through its input
alone. After frozen embeddings, whose output needs no gradient, recomputed layers and norms silently
do not train; and where anything else of a layer does, a recomputed norm before it ends the backward
pass with a TypeError, since nothing was kept of its input.
What is done: the input of such layers asks for a gradient, which nobody uses.
When the pin moves: whether `tensor_parallel.checkpoint` and `CheckpointWithoutOutput` are built on
torch's non-reentrant one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_block import TransformerBlock


def recomputable(hidden: Tensor, layers: TransformerBlock) -> Tensor:
    """`hidden` as `layers` may take it in under their recomputation; same values."""
    reaches_layers = hidden.requires_grad or not torch.is_grad_enabled()
    if layers.config.recompute_granularity is None or reaches_layers:
        return hidden
    if not any(parameter.requires_grad for parameter in layers.parameters()):
        return hidden  # frozen layers keep no activations
    return hidden.detach().requires_grad_()
