"""NVLM-D folders as released: the vision encoder, `mlp1` and the language model behind prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.schema import ModelConfig
from nvlm.convert.rules import Rule
from nvlm.convert.tables.internvit import vision_rules
from nvlm.convert.tables.projector import projector_rules
from nvlm.convert.tables.qwen2 import language_rules
from nvlm.convert.tables.timm import timm_rules

VISION_PREFIX, LANGUAGE_PREFIX = "vision_model.", "language_model."


def nvlm_d_rules(model: ModelConfig, num_hf_heads: Mapping[str, int]) -> list[Rule]:
    """`num_hf_heads`: heads in the tensors of an InternViT, of each in `model.vision.parts`."""
    return [
        *_vision_rules(model, num_hf_heads),
        *projector_rules(model),
        *language_rules(model, LANGUAGE_PREFIX),
    ]


def export_rules(model: ModelConfig) -> list[Rule]:
    """The tensors of an export: with all stored heads, as NVLM-D was released."""
    stored = {
        part: encoder.num_stored_attention_heads
        for part, encoder in model.vision.parts.items()
        if isinstance(encoder, InternViTConfig)
    }
    return nvlm_d_rules(model, stored)


def vision_prefix(part: str) -> str:
    """What begins the names of an encoder's tensors, of a key of `model.vision.parts`."""
    return f"{VISION_PREFIX}{part}." if part else VISION_PREFIX


def _vision_rules(model: ModelConfig, num_hf_heads: Mapping[str, int]) -> Iterator[Rule]:
    for part, encoder in model.vision.parts.items():
        if isinstance(encoder, InternViTConfig):
            yield from vision_rules(model, num_hf_heads[part], vision_prefix(part), part)
        else:
            yield from timm_rules(model, vision_prefix(part), part)
