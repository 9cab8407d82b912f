"""The parallel modules that layers are made of: Megatron-core's own or Transformer Engine's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nvlm.megatron.checkpoint_without_fp8 import ask_no_fp8_state
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


def layer_parts(layer_implementation: str, attention: str = "transformer_engine") -> LayerParts:
    """`local` or `transformer_engine`, as the platform resolved `model.layer_implementation`.

    Transformer Engine's linear layers may come with our attention (`attention: torch`), see
    `nvlm.platform.attention`.

    Norms stay ours in both: fused with the next linear they would be named differently, and
    InternViT's cast before the weight is not Transformer Engine's.
    """
    ask_no_fp8_state()
    if layer_implementation == "local":
        return LayerParts(ColumnParallelLinear, RowParallelLinear, SdpaAttention)
    assert layer_implementation == "transformer_engine", layer_implementation
    from megatron.core.extensions.transformer_engine import (
        TEColumnParallelLinear,
        TEDotProductAttention,
        TERowParallelLinear,
    )

    core = TEDotProductAttention if attention == "transformer_engine" else SdpaAttention
    return LayerParts(TEColumnParallelLinear, TERowParallelLinear, core)


class ProductRecomputingMLP(MLP):
    """Megatron-core's, of which SwiGLU's product is not kept but computed again.

    As Megatron-core's own selective recomputation does with norms, and with activations of experts.
    """

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:
        gate_and_up, bias = self.linear_fc1(hidden_states)
        assert bias is None
        checkpoint = CheckpointWithoutOutput()
        product: Any = checkpoint.checkpoint(self.activation_func, gate_and_up)
        output, output_bias = self.linear_fc2(product)
        checkpoint.discard_output_and_register_recompute(output)
        return output, output_bias


def mlp_spec(parts: LayerParts, config: TransformerConfig) -> ModuleSpec:
    """Of a layer, with our SwiGLU where `config` has a place for it (`use_te_activation_func`)."""
    activation: Any = swiglu if config.use_te_activation_func else None
    recomputes = activation and config.recompute_granularity == "selective"
    return ModuleSpec(
        module=ProductRecomputingMLP if recomputes else MLP,
        params={"ffn_hidden_size": config.ffn_hidden_size},
        submodules=MLPSubmodules(parts.column_linear, activation, parts.row_linear),
    )
