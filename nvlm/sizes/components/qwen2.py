"""The parameters of a decoder like Qwen2, Qwen3 or Llama: grouped queries, SwiGLU, RMSNorm.

With experts (`model.language.moe`) also those of Mixtral, Qwen2-MoE and Qwen3-MoE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nvlm.config.schema import LanguageConfig, ModelConfig
from nvlm.rows import ONES, STACKED_EXPERTS, ZEROS, Normal, Parameter
from nvlm.sizes.components import cross_attention
from nvlm.sizes.components.visual_weights import with_visual_rows
from nvlm.sizes.expert_layers import expert_ffn_hidden_size, expert_layers


def parameters(model: ModelConfig) -> Iterator[Parameter]:
    """In the order of the forward pass; keys without the component's name."""
    language = model.language
    hidden, normal = language.hidden_size, Normal(language.init_std)
    is_shared = language.share_embeddings_and_output_weights
    vocabulary = (language.vocab_size, hidden)
    yield Parameter(
        "embedding.word_embeddings.weight", vocabulary, normal, 0,
        pipeline_stage="first and last" if is_shared else "first",
    )  # fmt: skip
    of_layers = [*_layer(model), *_feed_forward(language)]
    for row in with_visual_rows(of_layers, language):
        yield replace(
            row,
            key=f"decoder.layers.{row.key}",
            num_layers=row.num_layers or language.num_layers,
            pipeline_stage="its layer's",
        )
    yield Parameter("decoder.final_layernorm.weight", (hidden,), ONES, pipeline_stage="last")
    if not is_shared:
        yield Parameter("output_layer.weight", vocabulary, normal, 0, pipeline_stage="last")


def _layer(model: ModelConfig) -> Iterator[Parameter]:
    language = model.language
    hidden = language.hidden_size
    queries = language.num_attention_heads * language.head_dim
    # A group's rows stand together: its queries, its key, its value.
    qkv = (language.num_attention_heads + 2 * language.num_query_groups) * language.head_dim
    normal = Normal(language.init_std)
    residual = normal.into_residual(language.num_layers)
    yield Parameter("input_layernorm.weight", (hidden,), ONES)
    yield Parameter("self_attention.linear_qkv.weight", (qkv, hidden), normal, 0)
    if language.qkv_bias:
        yield Parameter("self_attention.linear_qkv.bias", (qkv,), ZEROS, 0)
    if language.qk_layernorm:
        yield Parameter("self_attention.q_layernorm.weight", (language.head_dim,), ONES)
        yield Parameter("self_attention.k_layernorm.weight", (language.head_dim,), ONES)
    yield Parameter("self_attention.linear_proj.weight", (hidden, queries), residual, 1)
    yield from cross_attention.parameters(model)
    yield Parameter("pre_mlp_layernorm.weight", (hidden,), ONES)


def _feed_forward(language: LanguageConfig) -> Iterator[Parameter]:
    """Of layers with one MLP, and of those with experts; gate and up in one matrix."""
    hidden, ffn = language.hidden_size, language.ffn_hidden_size
    normal = Normal(language.init_std)
    residual = normal.into_residual(language.num_layers)
    with_experts = expert_layers(language)
    dense = tuple(n for n in range(language.num_layers) if n not in with_experts)
    of_dense = _only_in(dense) if with_experts else {}
    if dense:
        yield Parameter("mlp.linear_fc1.weight", (2 * ffn, hidden), normal, 0, **of_dense)
        yield Parameter("mlp.linear_fc2.weight", (hidden, ffn), residual, 1, **of_dense)
    if language.moe is None:
        return
    num_experts, ffn = language.moe.num_experts, expert_ffn_hidden_size(language)
    stack = _only_in(with_experts)
    yield Parameter("mlp.router.weight", (num_experts, hidden), normal, **stack)
    for name, shape, initial in (
        ("linear_fc1", (2 * ffn, hidden), normal),
        ("linear_fc2", (hidden, ffn), residual),
    ):
        key = f"mlp{STACKED_EXPERTS}{name}.weight"
        yield Parameter(key, shape, initial, num_experts=num_experts, **stack)


def _only_in(layers: tuple[int, ...]) -> dict[str, Any]:
    return {"num_layers": len(layers), "layer_numbers": layers}
