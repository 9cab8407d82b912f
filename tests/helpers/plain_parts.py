"""Parts of the model in plain torch, as the papers say them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nvlm.model.parts.pixel_shuffle import pixel_shuffle


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


def connected(level_npc: Tensor, weights: dict[str, Tensor], epsilon: float) -> Tensor:
    """NVLM-D's projector or, of as many weights, NVLM-X's: [n, p, c] -> [n * q, h]."""
    shuffled = pixel_shuffle(level_npc, 2)
    size = shuffled.shape[-1:]
    normed = functional.layer_norm(
        shuffled, size, weights["norm.weight"], weights["norm.bias"], epsilon
    )
    if "linear.weight" in weights:
        return functional.linear(normed, weights["linear.weight"]).flatten(0, 1)
    inner = functional.gelu(functional.linear(normed, weights["mlp.linear_fc1.weight"]))
    return functional.linear(inner, weights["mlp.linear_fc2.weight"]).flatten(0, 1)


def cross_attended(
    hidden_th: Tensor, beside_kh: Tensor, weights: dict[str, Tensor], sights, sizes
) -> Tensor:
    """Gated cross-attention: one softmax over all that is beside, with a mask.

    Args:
        weights: `norm`, `q`, `kv`, `proj` and `gate`.
        sizes: query heads, key/value heads, channels of a head, the norm's epsilon.
    """
    num_heads, num_groups, head_dim, epsilon = sizes
    mean_square = hidden_th.square().mean(-1, keepdim=True)
    normed = hidden_th * (mean_square + epsilon).rsqrt() * weights["norm"]
    query = (normed @ weights["q"].t()).unflatten(-1, (num_heads, head_dim))
    keys_values = (beside_kh @ weights["kv"].t()).unflatten(-1, (num_groups, 2 * head_dim))
    keys_values = keys_values.repeat_interleave(num_heads // num_groups, dim=1)
    key, value = keys_values.split(head_dim, dim=-1)
    scores = torch.einsum("thd,khd->htk", query, key) / head_dim**0.5
    mask = torch.zeros(len(hidden_th), len(beside_kh), dtype=torch.bool)
    for start, end, first, last in sights:
        mask[start:end, first:last] = True
    share = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num()
    out = torch.einsum("htk,khd->thd", share, value).flatten(1)
    return hidden_th + weights["gate"].tanh() * (out @ weights["proj"].t())


def both_gradients(
    model: Any, logits: Tensor, expected: Tensor, weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the same weighted sum of both logits: the model's, and those of the plain computation.

    weights: what that reads in the place of the model's parameters, by their names; the encoder is
    shared, and its gradients come by both ways.
    """
    weighting = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weighting).sum().backward()
    wanted = {
        f"vision_model.{name}": parameter.grad.clone()
        for name, parameter in model.vision_model.named_parameters()
    }
    for name, weight in weights.items():
        assert weight.grad is not None, name
        wanted[name] = weight.grad
    model.zero_grad()
    (logits * weighting).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if name in wanted}, wanted
