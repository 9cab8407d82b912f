"""Why the bias of queries, keys and values is set by hand: plain attention follows the others."""

from __future__ import annotations

from helpers import small_model

from nvlm.model.encoders import internvit
from nvlm.model.parts.layers import layer_parts
from nvlm.model.parts.transformer_config import vision_transformer_config


def attention_of_an_encoder(parallel):
    config = small_model.small_config()
    assert not config.model.vision.qkv_bias
    encoder = internvit.InternViT(
        config.model.vision,
        vision_transformer_config(config, config.model.vision, "local"),
        layer_parts("local"),
        parallel.groups,
    )
    return encoder.decoder.layers[0].self_attention


def test_plain_attention_has_a_bias_that_was_not_asked_for(parallel, monkeypatch):
    attention = attention_of_an_encoder(parallel)
    assert attention.linear_proj.bias is not None and attention.linear_qkv.bias is None
    monkeypatch.setattr(internvit, "with_qkv_bias", lambda column_linear, has_bias: column_linear)
    assert attention_of_an_encoder(parallel).linear_qkv.bias is not None
