"""Recomputed layers that train after frozen embeddings.

What is wrong: under full recomputation Megatron-core 0.16.1 makes layers a single operation to
autograd, and their parameters are reached through its input alone. After frozen embeddings, whose
output needs no gradient, they silently do not train.
What is done: the input of such a block asks for a gradient, which nobody uses.
When the pin moves: whether `tensor_parallel.checkpoint` is built on torch's non-reentrant one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


def recomputable(hidden: Tensor, config: TransformerConfig) -> Tensor:
    """`hidden` as a block of layers may take it in under `config`'s recomputation; same values."""
    reaches_layers = hidden.requires_grad or not torch.is_grad_enabled()
    if config.recompute_granularity != "full" or reaches_layers:
        return hidden
    return hidden.detach().requires_grad_()
