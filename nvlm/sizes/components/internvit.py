"""The parameters of InternViT, in its variants of norms and biases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nvlm.config.schema import ModelConfig, VisionConfig
from nvlm.rows import ONES, ZEROS, Constant, Normal, Parameter, ZeroHeads

NUM_COLOUR_CHANNELS = 3


def parameters(model: ModelConfig) -> Iterator[Parameter]:
    """In the order of the forward pass; keys without the component's name."""
    vision = model.vision
    hidden, normal = vision.hidden_size, Normal(vision.init_std)
    patch = (NUM_COLOUR_CHANNELS, vision.patch_size, vision.patch_size)
    yield Parameter("embeddings.class_embedding", (1, 1, hidden), normal)
    yield Parameter("embeddings.patch_embedding.weight", (hidden, *patch), normal)
    yield Parameter("embeddings.patch_embedding.bias", (hidden,), ZEROS)
    yield Parameter("embeddings.position_embedding", (1, 1 + vision.num_patches, hidden), normal)
    for row in _layer(vision):
        yield replace(row, key=f"decoder.layers.{row.key}", num_layers=vision.num_layers)


def _layer(vision: VisionConfig) -> Iterator[Parameter]:
    hidden, ffn = vision.hidden_size, vision.ffn_hidden_size
    width = vision.num_stored_attention_heads * vision.head_dim
    real_width = vision.num_attention_heads * vision.head_dim
    normal = Normal(vision.init_std)
    residual = normal.into_residual(vision.num_layers)
    layer_scale = Constant(vision.layer_scale_init)
    # Per head its queries, its keys and its values.
    of_qkv, of_heads = ZeroHeads(0, 3 * real_width), ZeroHeads(0, real_width)

    yield from _norm("input_layernorm", vision)
    yield Parameter(
        "self_attention.linear_qkv.weight", (3 * width, hidden), normal, 0, zero_heads=of_qkv
    )
    if vision.qkv_bias:
        yield Parameter("self_attention.linear_qkv.bias", (3 * width,), ZEROS, 0, zero_heads=of_qkv)
    if vision.qk_layernorm:
        for name in ("q_layernorm", "k_layernorm"):
            yield Parameter(f"self_attention.{name}.weight", (width,), ONES, 0, zero_heads=of_heads)
    yield Parameter(
        "self_attention.linear_proj.weight", (hidden, width), residual, 1,
        zero_heads=ZeroHeads(1, real_width),
    )  # fmt: skip
    yield Parameter("self_attention.linear_proj.bias", (hidden,), ZEROS)
    yield Parameter("self_attn_bda.scale", (hidden,), layer_scale)
    yield from _norm("pre_mlp_layernorm", vision)
    yield Parameter("mlp.linear_fc1.weight", (ffn, hidden), normal, 0)
    yield Parameter("mlp.linear_fc1.bias", (ffn,), ZEROS, 0)
    yield Parameter("mlp.linear_fc2.weight", (hidden, ffn), residual, 1)
    yield Parameter("mlp.linear_fc2.bias", (hidden,), ZEROS)
    yield Parameter("mlp_bda.scale", (hidden,), layer_scale)


def _norm(name: str, vision: VisionConfig) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (vision.hidden_size,), ONES)
    if vision.normalization == "LayerNorm":
        yield Parameter(f"{name}.bias", (vision.hidden_size,), ZEROS)
