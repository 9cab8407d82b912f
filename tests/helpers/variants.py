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
# Heads of a width of their own: 8 of 48 channels beside hidden states of 192.
QWEN3 = [
    "model.language.qkv_bias=false",
    "model.language.qk_layernorm=true",
    "model.language.kv_channels=48",
]
# The small models' sequences are short: waves are stretched beyond 32 tokens.
LLAMA3 = [
    "model.language.qkv_bias=false",
    "model.language.rope_base=500000.0",
    "model.language.rope_scaling={factor: 8.0, original_max_position_embeddings: 64}",
]
# As Qwen2 beyond 32,768 tokens; here beyond 16.
YARN = [
    "model.language.rope_scaling={kind: yarn, factor: 16, original_max_position_embeddings: 16}",
    "model.language.max_position_embeddings=256",
    "stage.sequence_length=256",
]

VISION = {
    "6B": [],
    "6B, no zero heads": NO_ZERO_HEADS,
    "300M": INTERNVIT_300M,
    "300M, no zero heads": [*INTERNVIT_300M, *NO_ZERO_HEADS],
}
LANGUAGE = {"shared embeddings": SHARED_EMBEDDINGS, "Yi": YI, "Qwen3": QWEN3, "Llama 3": LLAMA3}
