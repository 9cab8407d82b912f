"""Decoder layers with gated cross-attention: the last of each group of `layer_interval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron.core.transformer.spec_utils import ModuleSpec

from nvlm.config.schema import ModelConfig
from nvlm.model.parts.cross_attention import CrossAttention, Gate
from nvlm.model.parts.layers import LayerParts
from nvlm.model.parts.norms import RMSNorm


def with_cross_attention(
    layers: Sequence[ModuleSpec], first: int, model: ModelConfig, parts: LayerParts
) -> list[ModuleSpec]:
    """The layers, the first of which has the number `first`, with cross-attention in some."""
    slots: dict[str, Any] = {
        "pre_cross_attn_layernorm": RMSNorm,
        "cross_attention": ModuleSpec(
            module=CrossAttention,
            params={"num_groups": model.num_cross_attention_groups, "parts": parts},
        ),
        "cross_attn_bda": Gate,
    }
    return [
        replace(layer, submodules=replace(layer.submodules, **slots))  # type: ignore[type-var]
        if number in model.cross_attention_layers
        else layer
        for number, layer in enumerate(layers, start=first)
    ]
