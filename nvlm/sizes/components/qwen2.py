"""The parameters of a decoder like Qwen2, Qwen3 or Llama: grouped queries, SwiGLU, RMSNorm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nvlm.config.schema import LanguageConfig, ModelConfig
from nvlm.rows import ONES, ZEROS, Normal, Parameter


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
    for row in _layer(language):
        yield replace(
            row,
            key=f"decoder.layers.{row.key}",
            num_layers=language.num_layers,
            pipeline_stage="its layer's",
        )
    yield Parameter("decoder.final_layernorm.weight", (hidden,), ONES, pipeline_stage="last")
    if not is_shared:
        yield Parameter("output_layer.weight", vocabulary, normal, 0, pipeline_stage="last")


def _layer(language: LanguageConfig) -> Iterator[Parameter]:
    hidden, ffn = language.hidden_size, language.ffn_hidden_size
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
    yield Parameter("pre_mlp_layernorm.weight", (hidden,), ONES)
    # Gate and up in one matrix.
    yield Parameter("mlp.linear_fc1.weight", (2 * ffn, hidden), normal, 0)
    yield Parameter("mlp.linear_fc2.weight", (hidden, ffn), residual, 1)
