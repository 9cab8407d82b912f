"""Transformers' own models of the sizes that a configuration has: what ours are compared with."""

from __future__ import annotations

import torch

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.schema import LanguageConfig


def vision_model(vision: InternViTConfig):
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


def random_language_model(language: LanguageConfig):
    """`language_model` with every parameter random."""
    model = language_model(language)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.08 * noise)
    return model


def copy_weights(source, target, language: LanguageConfig) -> None:
    """The weights of a `language_model` into Megatron-core's of one process.

    Its layers' cross-attention, which the other has not, stays as it is.
    """
    groups = language.num_query_groups

    def interleaved(attention, kind: str):
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        by_group = [getattr(part, kind).unflatten(0, (groups, -1)) for part in parts]
        return torch.cat(by_group, dim=1).flatten(0, 1)

    weights = {
        "embedding.word_embeddings.weight": source.model.embed_tokens.weight,
        "decoder.final_layernorm.weight": source.model.norm.weight,
        "output_layer.weight": source.lm_head.weight,
    }
    for index, layer in enumerate(source.model.layers):
        prefix = f"decoder.layers.{index}."
        weights |= {
            prefix + "input_layernorm.weight": layer.input_layernorm.weight,
            prefix + "self_attention.linear_qkv.weight": interleaved(layer.self_attn, "weight"),
            prefix + "self_attention.linear_proj.weight": layer.self_attn.o_proj.weight,
            prefix + "pre_mlp_layernorm.weight": layer.post_attention_layernorm.weight,
            prefix + "mlp.linear_fc1.weight": torch.cat(
                [layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]
            ),
            prefix + "mlp.linear_fc2.weight": layer.mlp.down_proj.weight,
        }
        if language.qkv_bias:
            bias = interleaved(layer.self_attn, "bias")
            weights[prefix + "self_attention.linear_qkv.bias"] = bias
        if language.qk_layernorm:
            for name in "qk":
                norm = getattr(layer.self_attn, f"{name}_norm")
                weights[f"{prefix}self_attention.{name}_layernorm.weight"] = norm.weight
    named = target.named_parameters()
    parameters = {name: parameter for name, parameter in named if "cross_att" not in name}
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def worst_gradient(source, target, language: LanguageConfig) -> float:
    """Largest relative difference of a tensor's gradient in `target` from that in `source`.

    Both models' weights are `source`'s gradients afterwards: these are copied as the weights were.
    """
    gradients = {name: parameter.grad.clone() for name, parameter in target.named_parameters()}
    for parameter in source.parameters():
        parameter.data = parameter.grad
    copy_weights(source, target, language)
    return max(
        float((gradients[name] - parameter).norm() / parameter.norm())
        for name, parameter in target.named_parameters()
    )
