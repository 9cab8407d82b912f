"""The parameters of gated cross-attention, in those layers of a decoder that have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nvlm.config.schema import ModelConfig
from nvlm.rows import ONES, ZEROS, Normal, Parameter


def parameters(model: ModelConfig) -> Iterator[Parameter]:
    """In the order of the forward pass, between self-attention and MLP; keys within a layer."""
    layers = model.cross_attention_layers
    for row in _layer(model) if layers else ():
        yield replace(row, num_layers=len(layers), layer_numbers=layers)


def _layer(model: ModelConfig) -> Iterator[Parameter]:
    language = model.language
    hidden, normal = language.hidden_size, Normal(language.init_std)
    queries = language.num_attention_heads * language.head_dim
    # A group's rows stand together: its key, its value.
    keys_and_values = 2 * model.num_cross_attention_groups * language.head_dim
    residual = normal.into_residual(language.num_layers)
    yield Parameter("pre_cross_attn_layernorm.weight", (hidden,), ONES)
    yield Parameter("cross_attention.linear_q.weight", (queries, hidden), normal, 0)
    yield Parameter("cross_attention.linear_kv.weight", (keys_and_values, hidden), normal, 0)
    yield Parameter("cross_attention.linear_proj.weight", (hidden, queries), residual, 1)
    # Its tanh is what the branch counts: nothing at first.
    yield Parameter("cross_attn_bda.gate", (1,), ZEROS)
