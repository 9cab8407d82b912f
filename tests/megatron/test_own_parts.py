"""What Megatron-core's own modules refuse, in whose place `nvlm/model/parts` has ours."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from nvlm.model.parts.transformer_config import language_transformer_config


def test_local_attention_refuses_packed_documents(parallel):
    """`parts/attention.py` attends within each document."""
    config = language_transformer_config(small_model.small_config(), "local")
    attention = DotProductAttention(config, 1, AttnMaskType.causal, "self")
    heads = torch.zeros(8, config.num_attention_heads, config.kv_channels)
    documents = PackedSeqParams(qkv_format="thd", cu_seqlens_q=torch.tensor([0, 3, 8]))
    with pytest.raises(AssertionError, match=r"[Pp]acked"):
        attention(heads, heads, heads, None, packed_seq_params=documents)


def test_torch_norm_refuses_sequence_parallelism(parallel):
    """`parts/norms.py` marks its weights, whose gradients are then summed over the group."""
    config = small_model.small_config("parallel.tensor=2", "parallel.sequence=true")
    with pytest.raises(AssertionError, match="sequence parallel"):
        WrappedTorchNorm(language_transformer_config(config, "local"), 192)
