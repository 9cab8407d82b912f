"""The parallel modules that layers are made of: Megatron-core's own or Transformer Engine's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from nvlm.model.parts.attention import SdpaAttention
from nvlm.model.parts.swiglu import swiglu


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
    """Of a layer, with our SwiGLU where `config` has a place for it (`use_te_activation_func`)."""
    activation: Any = swiglu if config.use_te_activation_func else None
    return ModuleSpec(
        module=MLP,
        params={"ffn_hidden_size": config.ffn_hidden_size},
        submodules=MLPSubmodules(parts.column_linear, activation, parts.row_linear),
    )
