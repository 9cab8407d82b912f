"""A decoder with weights of its own for image tokens, against plain torch in fp64."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model, variants
from torch import Tensor
from torch.nn import functional

from nvlm.batch import MicroBatch
from nvlm.config.schema import LanguageConfig
from nvlm.model.parts.token_kinds import TokenKinds

CASES = {
    "norms_keys_values": ["model.language.visual_weights=norms_keys_values"],
    "all, Qwen3": ["model.language.visual_weights=all", *variants.QWEN3],
}


def of_kind(weights: dict[str, Tensor], name: str, is_visual: Tensor, hidden: Tensor) -> Tensor:
    """hidden [t, c] times the matrix of each token's kind, both computed for all tokens."""
    own = name.replace(".weight", ".visual_weight")
    bias, own_bias = (key.removesuffix("weight") + "bias" for key in (name, own))
    text = functional.linear(hidden, weights[name], weights.get(bias))
    if own not in weights:
        return text
    visual = functional.linear(hidden, weights[own], weights.get(own_bias))
    return torch.where(is_visual[:, None], visual, text)


def normed(weights: dict[str, Tensor], name: str, is_visual: Tensor, x: Tensor, eps: float):
    weight = weights[f"{name}.weight"].expand_as(x)
    if f"{name}.visual_weight" in weights:
        mask = is_visual.view(-1, *[1] * (x.dim() - 1))
        weight = torch.where(mask, weights[f"{name}.visual_weight"], weight)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotated(x_thd: Tensor, base: float) -> Tensor:
    half = x_thd.shape[-1] // 2
    speeds = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(x_thd))[:, None, None] * speeds
    first, second = x_thd.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def projected(w: dict[str, Tensor], is_visual: Tensor, x: Tensor, language: LanguageConfig):
    """Queries [t, h, d], keys and values [t, g, d]."""
    name, groups, width = "self_attention.linear_qkv", language.num_query_groups, language.head_dim
    if language.visual_weights == "all":
        qkv = of_kind(w, f"{name}.weight", is_visual, x).unflatten(-1, (groups, -1, width))
    else:
        qkv = functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])
        qkv = qkv.unflatten(-1, (groups, -1, width))
        own = functional.linear(x, w[f"{name}.visual_weight"], w[f"{name}.visual_bias"])
        own = torch.cat([qkv[:, :, :-2], own.unflatten(-1, (groups, 2, width))], dim=2)
        qkv = torch.where(is_visual[:, None, None, None], own, qkv)
    return qkv[:, :, :-2].flatten(1, 2), qkv[:, :, -2], qkv[:, :, -1]


def reference(
    row: Tensor, weights: dict[str, Tensor], is_visual: Tensor, language: LanguageConfig
) -> Tensor:
    """Logits [t, v] of one document."""
    hidden, eps = row, language.norm_epsilon
    shared = language.num_attention_heads // language.num_query_groups
    causal = torch.ones(len(row), len(row)).tril().bool()
    for layer in range(language.num_layers):
        prefix = f"decoder.layers.{layer}."
        w = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        x = normed(w, "input_layernorm", is_visual, hidden, eps)
        query, key, value = projected(w, is_visual, x, language)
        if language.qk_layernorm:
            query = normed(w, "self_attention.q_layernorm", is_visual, query, eps)
            key = normed(w, "self_attention.k_layernorm", is_visual, key, eps)
        query, key = (rotated(part, language.rope_base) for part in (query, key))
        key, value = (part.repeat_interleave(shared, 1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / language.head_dim**0.5
        share = scores.masked_fill(~causal, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", share, value).flatten(1)
        hidden = hidden + of_kind(w, "self_attention.linear_proj.weight", is_visual, out)
        x = normed(w, "pre_mlp_layernorm", is_visual, hidden, eps)
        gate, up = of_kind(w, "mlp.linear_fc1.weight", is_visual, x).chunk(2, dim=-1)
        product = functional.silu(gate) * up
        hidden = hidden + of_kind(w, "mlp.linear_fc2.weight", is_visual, product)
    hidden = normed(weights, "decoder.final_layernorm", is_visual, hidden, eps)
    return functional.linear(hidden, weights["output_layer.weight"])


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_plain_torch(case, parallel, measure):
    config = small_model.small_config(*CASES[case], "stage.freeze=[]")
    language = config.model.language
    model = small_model.build(config, parallel)
    micro_batch: MicroBatch = small_model.batch(config, 0, [60], num_tiles=2)
    weights = {
        name: parameter.detach().double().requires_grad_()
        for name, parameter in model.language_model.named_parameters()
    }
    row = model._embed(micro_batch)[0][:, 0].detach().double()
    expected = reference(row, weights, micro_batch.image_mask[0], language)
    logits = model(micro_batch, return_logits=True)[0]
    error = float((logits.double() - expected).abs().max() / expected.abs().max())
    measure(f"logits, visual weights {case}, relative", "plain torch in fp64", error, 1e-5)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    errors = {
        name: float((parameter.grad.double() - weights[name].grad).norm())
        / float(weights[name].grad.norm())
        for name, parameter in model.language_model.named_parameters()
        if name != "embedding.word_embeddings.weight"
    }
    assert any("visual" in name for name in errors)
    worst = max(errors.values())
    measure(f"gradients, visual weights {case}, worst", "plain torch in fp64", worst, 1e-5)


def test_rows_are_split_by_kind_and_joined():
    kinds = TokenKinds.of(torch.tensor([1, 2, 5]), 7)
    rows = torch.arange(7)
    text, visual = kinds.split(rows)
    assert text.tolist() == [0, 3, 4, 6] and visual.tolist() == [1, 2, 5]
    assert torch.equal(kinds.join(text, visual), rows)
    assert kinds.visual_positions.tolist() == [1, 2, 5]
    assert not len(TokenKinds.of(rows[:0], 7).visual_positions)
