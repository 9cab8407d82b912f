"""Overrides that turn the tiny model, an InternViT-6B with Qwen2 in small, into other variants."""

from __future__ import annotations

INTERNVIT_300M = [
    "model.vision.normalization=LayerNorm",
    "model.vision.qk_layernorm=false",
    "model.vision.qkv_bias=true",
]
NO_ZERO_HEADS = ["model.vision.num_stored_attention_heads=5"]
SHARED_EMBEDDINGS = ["model.language.share_embeddings_and_output_weights=true"]
YI = ["model.language.qkv_bias=false"]

VISION = {
    "6B": [],
    "6B, no zero heads": NO_ZERO_HEADS,
    "300M": INTERNVIT_300M,
    "300M, no zero heads": [*INTERNVIT_300M, *NO_ZERO_HEADS],
}
LANGUAGE = {"shared embeddings": SHARED_EMBEDDINGS, "Yi": YI}
