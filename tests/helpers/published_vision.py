"""Transformers' InternVL vision model with random weights, and these under our names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from helpers import published_models


def published_vision_model(vision):
    """Transformers' model of the same sizes and variant, every parameter random."""
    model = published_models.vision_model(vision)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("norm.weight", "_before.weight", "_after.weight", "lambda_1")):
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias") or "lambda" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(0.05 * noise)
    return model


def padded(tensor: Tensor, num_heads: int, num_stored: int) -> Tensor:
    """[heads * rows, ...] -> [stored heads, rows, ...] with zeros after them."""
    by_head = tensor.unflatten(0, (num_heads, -1))
    zeros = by_head.new_zeros(num_stored - num_heads, *by_head.shape[1:])
    return torch.cat([by_head, zeros])


def as_megatron(source, vision, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """`value` of each parameter of transformers' model, under our names and in our layout."""
    real, stored = vision.num_attention_heads, vision.num_stored_attention_heads

    def by_head(parameter: Tensor) -> Tensor:
        return padded(value(parameter), real, stored)

    embeddings = source.embeddings
    found = {
        "embeddings.class_embedding": value(embeddings.cls_token),
        "embeddings.position_embedding": value(embeddings.position_embeddings),
        "embeddings.patch_embedding.weight": value(embeddings.patch_embeddings.projection.weight),
        "embeddings.patch_embedding.bias": value(embeddings.patch_embeddings.projection.bias),
    }
    for index, layer in enumerate(source.encoder.layer):
        attention = layer.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        of_layer = {
            "self_attention.linear_qkv.weight": torch.cat(
                [by_head(linear.weight) for linear in projections], dim=1
            ).flatten(0, 1),
            "self_attention.linear_proj.weight": padded(
                value(attention.projection_layer.weight).t(), real, stored
            )
            .flatten(0, 1)
            .t(),
            "self_attention.linear_proj.bias": value(attention.projection_layer.bias),
            "self_attn_bda.scale": value(layer.lambda_1),
            "input_layernorm.weight": value(layer.layernorm_before.weight),
            "pre_mlp_layernorm.weight": value(layer.layernorm_after.weight),
            "mlp.linear_fc1.weight": value(layer.mlp.fc1.weight),
            "mlp.linear_fc1.bias": value(layer.mlp.fc1.bias),
            "mlp.linear_fc2.weight": value(layer.mlp.fc2.weight),
            "mlp.linear_fc2.bias": value(layer.mlp.fc2.bias),
            "mlp_bda.scale": value(layer.lambda_2),
        }
        if vision.normalization == "LayerNorm":
            of_layer["input_layernorm.bias"] = value(layer.layernorm_before.bias)
            of_layer["pre_mlp_layernorm.bias"] = value(layer.layernorm_after.bias)
        if vision.qk_layernorm:
            for part, norm in (("q", attention.q_norm), ("k", attention.k_norm)):
                of_layer[f"self_attention.{part}_layernorm.weight"] = by_head(norm.weight).flatten()
        if vision.qkv_bias:
            of_layer["self_attention.linear_qkv.bias"] = torch.cat(
                [by_head(linear.bias) for linear in projections], dim=1
            ).flatten()
        found |= {f"decoder.layers.{index}.{name}": tensor for name, tensor in of_layer.items()}
    return found
