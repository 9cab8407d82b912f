"""NVLM-D folders as released: InternViT, `mlp1` and the language model behind prefixes."""

from __future__ import annotations

from nvlm.config.schema import ModelConfig
from nvlm.convert.rules import Rule
from nvlm.convert.tables.internvit import vision_rules
from nvlm.convert.tables.projector import projector_rules
from nvlm.convert.tables.qwen2 import language_rules

VISION_PREFIX, LANGUAGE_PREFIX = "vision_model.", "language_model."


def nvlm_d_rules(model: ModelConfig, num_hf_heads: int) -> list[Rule]:
    """`num_hf_heads` heads are in the vision encoder's tensors."""
    return [
        *vision_rules(model, num_hf_heads, VISION_PREFIX),
        *projector_rules(model),
        *language_rules(model, LANGUAGE_PREFIX),
    ]


def export_rules(model: ModelConfig) -> list[Rule]:
    """The tensors of an export: with all stored heads, as NVLM-D was released."""
    return nvlm_d_rules(model, model.vision.num_stored_attention_heads)
