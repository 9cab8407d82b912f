"""The sizes of a decoder: `model.language`."""

from __future__ import annotations

from typing import Literal

from nvlm.config.experts import ExpertsConfig
from nvlm.config.rope_scaling import RopeScaling
from nvlm.config.section import Section
from nvlm.config.values import Count, NumLayers, Positive, Switch


class LanguageConfig(Section):
    """A decoder of the Llama and Qwen kind: RMSNorm, SwiGLU, grouped queries, rotary positions.

    Qwen2 and 2.5 have `qkv_bias`; Qwen3 has `qk_layernorm` and its own `kv_channels`; Llama, Yi and
    Mistral have neither, Llama 3.1 and later have `rope_scaling`, as Qwen2 beyond 32,768
    tokens."""

    num_layers: NumLayers
    """Transformer layers."""
    hidden_size: Count
    """Width of a token's hidden state."""
    ffn_hidden_size: Count
    """Width inside the SwiGLU MLP of a layer."""
    num_attention_heads: Count
    """Query heads."""
    num_query_groups: Count
    """Key and value heads, each shared by as many query heads (grouped-query attention)."""
    vocab_size: Count
    """Rows of the embedding matrix: the tokenizer's tokens and what pads them."""
    kv_channels: Count | None = None
    """Width of a head. null: `hidden_size / num_attention_heads`."""
    rope_base: Positive = 1_000_000.0
    """Base of the rotary position embedding."""
    rope_scaling: RopeScaling | None = None
    """Slower rotation for longer sequences. null: none."""
    norm_epsilon: Positive = 1e-6
    """Added to the mean square in every RMSNorm."""
    qkv_bias: Switch = True
    """Bias of the query, key and value projections."""
    qk_layernorm: Switch = False
    """RMSNorm of each head's queries and keys, with one weight for all heads (Qwen3)."""
    moe: ExpertsConfig | None = None
    """Experts in place of the MLP. null: every layer has one MLP."""
    visual_weights: Literal["none", "norms_keys_values", "all"] = "none"
    """What of each layer image tokens have for themselves: nothing, norms and the matrices of keys
    and values (mPLUG-Owl2), or all weights (Mixture-of-Transformers). `nvlm convert from-hf` fills
    them with copies of the language model's; their names are like `*.visual_*`."""
    share_embeddings_and_output_weights: Switch = False
    """One matrix for token embeddings and output layer (Qwen2's small sizes)."""
    max_position_embeddings: Count = 32768
    """Longest sequence that the decoder is made for, in tokens."""
    init_std: Positive = 0.014
    """Standard deviation of random first weights."""

    @property
    def head_dim(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads
