"""Transformers' own models of the sizes that a configuration has: what ours are compared with."""

from __future__ import annotations

from nvlm.config.schema import LanguageConfig, VisionConfig


def vision_model(vision: VisionConfig):
    """An `InternVLVisionModel`, which has no zero heads."""
    from transformers import InternVLVisionConfig, InternVLVisionModel

    config = InternVLVisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.ffn_hidden_size,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_attention_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        attention_bias=vision.qkv_bias,
        use_qk_norm=vision.qk_layernorm,
        norm_type={"RMSNorm": "rms_norm", "LayerNorm": "layer_norm"}[vision.normalization],
        layer_norm_eps=vision.norm_epsilon,
    )
    return InternVLVisionModel(config).eval()


def language_model(language: LanguageConfig):
    """A Qwen2, or a Llama where queries, keys and values have no bias."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    settings = {
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_query_groups,
        "rms_norm_eps": language.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_base},
        "max_position_embeddings": language.max_position_embeddings,
        "tie_word_embeddings": language.share_embeddings_and_output_weights,
    }
    if language.qkv_bias:
        return Qwen2ForCausalLM(Qwen2Config(**settings)).eval()
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()
