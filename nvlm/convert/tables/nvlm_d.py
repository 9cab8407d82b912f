"""NVLM-D folders as released: the vision encoder, `mlp1` and the language model behind prefixes."""

from __future__ import annotations

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.schema import ModelConfig
from nvlm.convert.rules import Rule
from nvlm.convert.tables.internvit import vision_rules
from nvlm.convert.tables.projector import projector_rules
from nvlm.convert.tables.qwen2 import language_rules
from nvlm.convert.tables.timm import timm_rules

VISION_PREFIX, LANGUAGE_PREFIX = "vision_model.", "language_model."


def nvlm_d_rules(model: ModelConfig, num_hf_heads: int) -> list[Rule]:
    """`num_hf_heads` heads are in the tensors of an InternViT."""
    return [
        *_vision_rules(model, num_hf_heads),
        *projector_rules(model),
        *language_rules(model, LANGUAGE_PREFIX),
    ]


def export_rules(model: ModelConfig) -> list[Rule]:
    """The tensors of an export: with all stored heads, as NVLM-D was released."""
    vision = model.vision
    is_padded = isinstance(vision, InternViTConfig)
    return nvlm_d_rules(model, vision.num_stored_attention_heads if is_padded else 0)


def _vision_rules(model: ModelConfig, num_hf_heads: int) -> list[Rule]:
    if isinstance(model.vision, InternViTConfig):
        return vision_rules(model, num_hf_heads, VISION_PREFIX)
    return timm_rules(model, VISION_PREFIX)
