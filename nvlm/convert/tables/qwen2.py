"""Qwen2 (with `qkv_bias`), Qwen3 (with `qk_layernorm`), Llama and Mistral (without either).

With experts (`moe`) Qwen2-MoE and Qwen3-MoE, which name them alike.

Where embeddings and output layer share their weights, neither side stores the output layer.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from nvlm.config.schema import ModelConfig
from nvlm.convert.rules import Rule, rules_of
from nvlm.convert.tables.layouts import keys_and_values, query_groups, stacked
from nvlm.rows import STACKED_EXPERTS, Parameter
from nvlm.sizes.components.visual_weights import is_visual, of_all_tokens
from nvlm.sizes.parameters import LANGUAGE, component_parameters

# Key of the parameter -> Hugging Face names; `{layer}` goes into names of layers, `{expert}` also
# into those of experts.
_NAMES = {
    "embedding.word_embeddings.weight": ["model.embed_tokens.weight"],
    "decoder.layers.input_layernorm.weight": ["input_layernorm.weight"],
    "decoder.layers.self_attention.linear_qkv.weight": [
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
    ],
    "decoder.layers.self_attention.linear_qkv.bias": [
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
    ],
    "decoder.layers.self_attention.q_layernorm.weight": ["self_attn.q_norm.weight"],
    "decoder.layers.self_attention.k_layernorm.weight": ["self_attn.k_norm.weight"],
    "decoder.layers.self_attention.linear_proj.weight": ["self_attn.o_proj.weight"],
    "decoder.layers.pre_cross_attn_layernorm.weight": ["cross_attention.norm.weight"],
    "decoder.layers.cross_attention.linear_q.weight": ["cross_attention.q_proj.weight"],
    "decoder.layers.cross_attention.linear_kv.weight": [
        "cross_attention.k_proj.weight",
        "cross_attention.v_proj.weight",
    ],
    "decoder.layers.cross_attention.linear_proj.weight": ["cross_attention.o_proj.weight"],
    "decoder.layers.cross_attn_bda.gate": ["cross_attention.gate"],
    "decoder.layers.pre_mlp_layernorm.weight": ["post_attention_layernorm.weight"],
    "decoder.layers.mlp.linear_fc1.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "decoder.layers.mlp.linear_fc2.weight": ["mlp.down_proj.weight"],
    "decoder.layers.mlp.router.weight": ["mlp.gate.weight"],
    f"decoder.layers.mlp{STACKED_EXPERTS}linear_fc1.weight": [
        "mlp.experts.{expert}.gate_proj.weight",
        "mlp.experts.{expert}.up_proj.weight",
    ],
    f"decoder.layers.mlp{STACKED_EXPERTS}linear_fc2.weight": [
        "mlp.experts.{expert}.down_proj.weight"
    ],
    "decoder.final_layernorm.weight": ["model.norm.weight"],
    "output_layer.weight": ["lm_head.weight"],
}


def language_rules(
    model: ModelConfig, hf_prefix: str = "", with_cross_attention: bool = True
) -> list[Rule]:
    """`with_cross_attention`: where the model has it; published language models do not."""
    language = model.language
    grouped = query_groups(
        language.num_attention_heads, language.num_query_groups, language.head_dim
    )
    layouts = {
        "decoder.layers.self_attention.linear_qkv.weight": grouped,
        "decoder.layers.self_attention.linear_qkv.bias": grouped,
        "decoder.layers.mlp.linear_fc1.weight": stacked(2),
        f"decoder.layers.mlp{STACKED_EXPERTS}linear_fc1.weight": stacked(2),
        "decoder.layers.cross_attention.linear_kv.weight": keys_and_values(
            model.num_cross_attention_groups, language.head_dim
        ),
    }
    own = keys_and_values(language.num_query_groups, language.head_dim)
    has_all = language.visual_weights == "all"
    names: dict[str, list[str]] = {}
    for key, short_names in _NAMES.items():
        of_layer = "model.layers.{layer}." if key.startswith("decoder.layers.") else ""
        names[key] = [hf_prefix + of_layer + name for name in short_names]
    rows = component_parameters(model, LANGUAGE)
    for row in rows:
        if is_visual(row):  # a copy of what there is for all tokens
            key = row.key.removeprefix(f"{LANGUAGE}.")
            source = of_all_tokens(key)
            is_shorter = ".linear_qkv." in key and not has_all
            names[key] = names[source][1:] if is_shorter else names[source]
            if layout := own if is_shorter else layouts.get(source):
                layouts[key] = layout
    if not with_cross_attention:
        rows = [row for row in rows if not is_cross_attention(row)]
    return rules_of(rows, names, layouts)


def cross_attention_rules(model: ModelConfig) -> list[Rule]:
    """Of what a published language model lacks, by itself."""
    return [rule for rule in language_rules(model) if is_cross_attention(rule.parameter)]


def is_cross_attention(row: Parameter) -> bool:
    """Matrices, norm and gate; the patterns of `stage.freeze` are like this one."""
    return fnmatchcase(row.key, "*cross_att*")
