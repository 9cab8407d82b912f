"""Decoder layers in which image tokens have weights of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec

from nvlm.config.schema import LanguageConfig
from nvlm.model.parts.token_kinds import VisualLayer
from nvlm.model.parts.visual_weights import (
    VisualColumnLinear,
    VisualHeadNorm,
    VisualKeysValues,
    VisualRMSNorm,
    VisualRowLinear,
)


def with_visual_weights(layers: Sequence[ModuleSpec], language: LanguageConfig) -> list[ModuleSpec]:
    """The layers, with the parts that `model.language.visual_weights` names in two.

    Linear layers of two matrices are Megatron-core's own, also beside Transformer Engine's.
    """
    if language.visual_weights == "none":
        return list(layers)
    return [_layer(layer, language.visual_weights == "all") for layer in layers]


def _layer(layer: ModuleSpec, has_all: bool) -> ModuleSpec:
    slots: Any = layer.submodules
    attention: Any = slots.self_attention
    parts: dict[str, Any] = {"linear_qkv": VisualKeysValues}
    mlp: Any = slots.mlp
    if has_all:
        parts = {"linear_qkv": VisualColumnLinear, "linear_proj": VisualRowLinear}
        for name in ("q_layernorm", "k_layernorm"):
            norm = getattr(attention.submodules, name)
            if norm is not IdentityOp:
                parts[name] = replace(norm, module=VisualHeadNorm)
        linears = replace(mlp.submodules, linear_fc1=VisualColumnLinear, linear_fc2=VisualRowLinear)
        mlp = replace(mlp, submodules=linears)
    attention = replace(attention, submodules=replace(attention.submodules, **parts))
    slots = replace(
        slots,
        input_layernorm=VisualRMSNorm,
        self_attention=attention,
        pre_mlp_layernorm=VisualRMSNorm,
        mlp=mlp,
    )
    return replace(layer, module=VisualLayer, submodules=slots)
