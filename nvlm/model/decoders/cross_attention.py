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

    def read_by(number: int) -> dict[str, Any]:
        level = (_level(model, number), model.num_levels_beside)
        params = {"num_groups": model.num_cross_attention_groups, "parts": parts, "level": level}
        return {
            "pre_cross_attn_layernorm": RMSNorm,
            "cross_attention": ModuleSpec(module=CrossAttention, params=params),
            "cross_attn_bda": Gate,
        }

    return [
        replace(layer, submodules=replace(layer.submodules, **read_by(number)))  # type: ignore[type-var]
        if number in model.cross_attention_layers
        else layer
        for number, layer in enumerate(layers, start=first)
    ]


def _level(model: ModelConfig, number: int) -> int:
    assert model.cross_attention is not None
    num_layers = model.language.num_layers
    return model.cross_attention.level(number, num_layers, model.num_levels_beside)
