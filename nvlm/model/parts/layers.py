"""The parallel modules that layers are made of: Megatron-core's own or Transformer Engine's."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nvlm.model.parts.attention import SdpaAttention


@dataclass(frozen=True)
class LayerParts:
    """Classes of one implementation. Parameter names and shapes are the same in all of them.

    Typed loosely: Megatron-core's annotations are narrower than what its builders accept.
    """

    column_linear: Any
    row_linear: Any
    core_attention: Any


def layer_parts(layer_implementation: str) -> LayerParts:
    """`local` or `transformer_engine`, as the platform resolved `model.layer_implementation`.

    Norms stay ours in both: fused with the next linear they would be named differently, and
    InternViT's cast before the weight is not Transformer Engine's.
    """
    if layer_implementation == "local":
        return LayerParts(ColumnParallelLinear, RowParallelLinear, SdpaAttention)
    assert layer_implementation == "transformer_engine", layer_implementation
    from megatron.core.extensions.transformer_engine import (
        TEColumnParallelLinear,
        TEDotProductAttention,
        TERowParallelLinear,
    )

    return LayerParts(TEColumnParallelLinear, TERowParallelLinear, TEDotProductAttention)


def mlp_spec(parts: LayerParts, config: TransformerConfig) -> ModuleSpec:
    return ModuleSpec(
        module=MLP,
        params={"ffn_hidden_size": config.ffn_hidden_size},
        submodules=MLPSubmodules(linear_fc1=parts.column_linear, linear_fc2=parts.row_linear),
    )


def follow_gradient_mode(block: TransformerBlock) -> None:
    """Let a caller's `no_grad` reach the residual additions of `block`.

    Megatron-core turns gradients on for them, whatever the caller said: a frozen encoder, or
    generation, would then keep every residual of every layer alive.
    """
    for layer in block.layers:
        layer.bias_dropout_add_exec_handler = nullcontext  # type: ignore[assignment]


def recomputable(hidden: Tensor, config: TransformerConfig) -> Tensor:
    """`hidden` as a block of layers may take it in under full recomputation.

    Recomputed layers are a single operation to autograd, and their parameters are reached through
    its input alone: behind frozen embeddings, which need no gradient, they would not train.
    """
    reaches_layers = hidden.requires_grad or not torch.is_grad_enabled()
    if config.recompute_granularity != "full" or reaches_layers:
        return hidden
    return hidden.detach().requires_grad_()
