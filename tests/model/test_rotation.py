"""How fast channels turn: transformers' numbers, at the sizes of published models."""

from __future__ import annotations

import pytest
import torch
from helpers import published_models, small_model
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nvlm.model.parts.rotation import scale_rotation, softmax_scale

# Llama 3.1's, Qwen2.5's for 131,072 tokens, and one that says everything.
SCALINGS = {
    "llama3": (
        128,
        500_000.0,
        131_072,
        "{factor: 8, original_max_position_embeddings: 8192}",
    ),
    "yarn": (
        128,
        1_000_000.0,
        131_072,
        "{kind: yarn, factor: 4, original_max_position_embeddings: 32768}",
    ),
    "yarn, every key": (
        64,
        10_000.0,
        8192,
        "{kind: yarn, factor: 2, original_max_position_embeddings: 4096, beta_fast: 16, "
        "beta_slow: 2, attention_factor: 1.25}",
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_transformers(name, parallel, measure):
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

    head_dim, base, positions, scaling = SCALINGS[name]
    config = small_model.small_config(
        f"model.language.rope_scaling={scaling}",
        f"model.language.kv_channels={head_dim}",
        f"model.language.rope_base={base}",
        f"model.language.max_position_embeddings={positions}",
    )
    language = config.model.language
    theirs = published_models.language_settings(language)
    kind = theirs.rope_parameters["rope_type"]
    speeds, factor = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"))
    rotary = RotaryEmbedding(head_dim, 1.0, rotary_base=base, cp_group=parallel.groups.cp)
    plain = rotary.inv_freq.clone()
    scale_rotation(language, rotary)
    assert not torch.allclose(rotary.inv_freq, plain, rtol=0.1)
    error = float(((rotary.inv_freq - speeds) / speeds).abs().max())
    measure(f"speeds of rotation, {name}", f"transformers' {kind}", error, 1e-6)
    scale = softmax_scale(language) or head_dim**-0.5
    assert scale == pytest.approx(factor**2 / head_dim**0.5, rel=1e-12)
    assert (factor != 1) == (kind == "yarn")
