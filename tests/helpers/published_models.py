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
    """A Qwen2, a Qwen3 where queries and keys are normalised, or else a Llama."""
    return language_class(language)(language_settings(language)).eval()


def language_class(language: LanguageConfig):
    """The class that transformers has for it."""
    import transformers

    if language.moe is not None:
        name = "Qwen3MoeForCausalLM" if language.qk_layernorm else "Qwen2MoeForCausalLM"
        return getattr(transformers, name)
    bias = "Qwen2ForCausalLM" if language.qkv_bias else "LlamaForCausalLM"
    return getattr(transformers, "Qwen3ForCausalLM" if language.qk_layernorm else bias)


def language_settings(language: LanguageConfig, **changes):
    """The configuration of `language_class`."""
    rope = {"rope_type": "default", "rope_theta": language.rope_base}
    if language.rope_scaling is not None:
        scaling = language.rope_scaling.model_dump()
        rope |= {"rope_type": scaling.pop("kind"), **scaling}
    settings = {
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_query_groups,
        "rms_norm_eps": language.norm_epsilon,
        "head_dim": language.head_dim,
        "rope_parameters": rope,
        "max_position_embeddings": language.max_position_embeddings,
        "tie_word_embeddings": language.share_embeddings_and_output_weights,
    }
    if language.moe is not None:
        settings |= {
            "num_experts": language.moe.num_experts,
            "num_experts_per_tok": language.moe.top_k,
            "decoder_sparse_step": language.moe.every_nth_layer,
            "moe_intermediate_size": language.moe.ffn_hidden_size or language.ffn_hidden_size,
            "norm_topk_prob": True,
        }
        if not language.qk_layernorm:
            settings |= {"qkv_bias": language.qkv_bias, "shared_expert_intermediate_size": 0}
    return language_class(language).config_class(**settings | changes)
