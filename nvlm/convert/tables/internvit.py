"""InternViT, in its variants of norms and biases; names as OpenGVLab publishes it."""

from __future__ import annotations

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.schema import ModelConfig
from nvlm.convert.rules import Layout, Rule, rules_of
from nvlm.convert.tables.layouts import interleaved_heads, padded_heads
from nvlm.sizes.parameters import part_parameters

# Key of the parameter -> Hugging Face name; `{layer}` goes into the names of layers.
_EMBEDDINGS = {
    "embeddings.class_embedding": "embeddings.class_embedding",
    "embeddings.position_embedding": "embeddings.position_embedding",
    "embeddings.patch_embedding.weight": "embeddings.patch_embedding.weight",
    "embeddings.patch_embedding.bias": "embeddings.patch_embedding.bias",
}
_LAYER = {
    "input_layernorm.weight": "norm1.weight",
    "input_layernorm.bias": "norm1.bias",
    "self_attention.linear_qkv.weight": "attn.qkv.weight",
    "self_attention.linear_proj.weight": "attn.proj.weight",
    "self_attention.linear_proj.bias": "attn.proj.bias",
    "self_attn_bda.scale": "ls1",
    "pre_mlp_layernorm.weight": "norm2.weight",
    "pre_mlp_layernorm.bias": "norm2.bias",
    "mlp.linear_fc1.weight": "mlp.fc1.weight",
    "mlp.linear_fc1.bias": "mlp.fc1.bias",
    "mlp.linear_fc2.weight": "mlp.fc2.weight",
    "mlp.linear_fc2.bias": "mlp.fc2.bias",
    "mlp_bda.scale": "ls2",
    "self_attention.linear_qkv.bias": "attn.qkv.bias",
    "self_attention.q_layernorm.weight": "attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "attn.k_norm.weight",
}


def vision_rules(
    model: ModelConfig, num_hf_heads: int, hf_prefix: str = "", part: str = ""
) -> list[Rule]:
    """`num_hf_heads` heads are in the Hugging Face tensors: the real ones, or zero ones after.

    `part`: of several encoders which one, as `model.vision.parts` has it.
    """
    at = f"{part}." if part else ""
    names = {at + key: [hf_prefix + name] for key, name in _EMBEDDINGS.items()}
    names |= {
        f"{at}decoder.layers.{key}": [f"{hf_prefix}encoder.layers.{{layer}}.{name}"]
        for key, name in _LAYER.items()
    }
    parameters = part_parameters(model, part)
    vision = model.vision.parts[part]
    assert isinstance(vision, InternViTConfig)
    num_stored = vision.num_stored_attention_heads
    layouts: dict[str, Layout] = {}
    for row in parameters:
        if row.zero_heads is not None:
            make = interleaved_heads if ".linear_qkv." in row.key else padded_heads
            layouts[row.key.partition(".")[2]] = make(row, num_stored, num_hf_heads)
    return rules_of(parameters, names, layouts)
