"""What vLLM's class NVLM_D_Model expects of a folder, computed as vLLM computes it.

`docs/serving.md` has the same as a table. Sources: repository vllm-project/vllm,

    vllm/model_executor/models/nvlm_d.py            commit 020ecb3
    vllm/model_executor/models/internvl.py          commit b32b213
    vllm/model_executor/models/intern_vit.py        commit 1d1fc66
    vllm/transformers_utils/processors/nvlm_d.py    commit 8a8be3d
    vllm/transformers_utils/config.py               commit e23031f
"""

from __future__ import annotations

from typing import Any

# NVLM_D_Model._init_vision_model: fixed in the code, not read from the configuration.
NUM_DUMMY_HEADS = 7

# Attributes of the configuration that its classes read, and the type they must have. `text_config`
# is what config.py makes of `llm_config`.
ATTRIBUTES: dict[str, type] = {
    "architectures": list,
    "model_type": str,
    "force_image_size": int,
    "downsample_ratio": float,
    "ps_version": str,
    "select_layer": int,
    "dynamic_image_size": bool,
    "use_thumbnail": bool,
    "min_dynamic_patch": int,
    "max_dynamic_patch": int,
    "vision_config.hidden_size": int,
    "vision_config.intermediate_size": int,
    "vision_config.num_hidden_layers": int,
    "vision_config.num_attention_heads": int,
    "vision_config.image_size": int,
    "vision_config.patch_size": int,
    "vision_config.qkv_bias": bool,
    "vision_config.qk_normalization": bool,
    "vision_config.norm_type": str,
    "vision_config.layer_norm_eps": float,
    "vision_config.hidden_act": str,
    "vision_config.initializer_factor": float,
    "text_config.architectures": list,
    "text_config.hidden_size": int,
    "text_config.intermediate_size": int,
    "text_config.num_attention_heads": int,
    "text_config.num_key_value_heads": int,
    "text_config.num_hidden_layers": int,
    "text_config.vocab_size": int,
    "text_config.rms_norm_eps": float,
    "text_config.max_position_embeddings": int,
    "text_config.tie_word_embeddings": bool,
}

# Token of the tokenizer that its processor repeats once per image embedding.
PLACEHOLDER = "<|vision_pad|>"

Shapes = dict[str, tuple[int, ...]]


def tensors(config: dict[str, Any]) -> Shapes:
    """Name and shape of every weight that vLLM loads, from the values of `config.json`."""
    vision, text = config["vision_config"], config["llm_config"]
    return {
        **_vision_tensors(vision, config["select_layer"]),
        **_projector_tensors(vision, text, config["downsample_ratio"]),
        **_text_tensors(text),
    }


def _vision_tensors(vision: dict[str, Any], select_layer: int) -> Shapes:
    width, ffn = vision["hidden_size"], vision["intermediate_size"]
    head = width // vision["num_attention_heads"]
    attention = (NUM_DUMMY_HEADS + vision["num_attention_heads"]) * head
    num_positions = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    prefix = "vision_model.embeddings."
    shapes: Shapes = {
        prefix + "class_embedding": (1, 1, width),
        prefix + "patch_embedding.weight": (width, 3, vision["patch_size"], vision["patch_size"]),
        prefix + "patch_embedding.bias": (width,),
        prefix + "position_embedding": (1, num_positions, width),
    }
    layer: Shapes = {
        "attn.qkv.weight": (3 * attention, width),
        "attn.proj.weight": (width, attention),
        "attn.proj.bias": (width,),
        "mlp.fc1.weight": (ffn, width),
        "mlp.fc1.bias": (ffn,),
        "mlp.fc2.weight": (width, ffn),
        "mlp.fc2.bias": (width,),
        "norm1.weight": (width,),
        "norm2.weight": (width,),
        "ls1": (width,),
        "ls2": (width,),
    }
    if vision["qkv_bias"]:
        layer["attn.qkv.bias"] = (3 * attention,)
    if vision["qk_normalization"]:
        layer |= {"attn.q_norm.weight": (attention,), "attn.k_norm.weight": (attention,)}
    if vision["norm_type"] == "layer_norm":
        layer |= {"norm1.bias": (width,), "norm2.bias": (width,)}
    for index in range(vision["num_hidden_layers"] + select_layer + 1):
        layer_prefix = f"vision_model.encoder.layers.{index}."
        shapes |= {layer_prefix + name: shape for name, shape in layer.items()}
    return shapes


def _projector_tensors(vision: dict, text: dict, downsample_ratio: float) -> Shapes:
    width = vision["hidden_size"] * int(1 / downsample_ratio) ** 2
    return {
        "mlp1.0.weight": (width,),
        "mlp1.0.bias": (width,),
        "mlp1.1.weight": (text["intermediate_size"], width),
        "mlp1.3.weight": (text["hidden_size"], text["intermediate_size"]),
    }


def _text_tensors(text: dict[str, Any]) -> Shapes:
    """Its Qwen2ForCausalLM and LlamaForCausalLM take q, k, v and gate, up from separate tensors."""
    width, ffn = text["hidden_size"], text["intermediate_size"]
    key_width = width // text["num_attention_heads"] * text["num_key_value_heads"]
    layer: Shapes = {
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (key_width, width),
        "self_attn.v_proj.weight": (key_width, width),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (ffn, width),
        "mlp.up_proj.weight": (ffn, width),
        "mlp.down_proj.weight": (width, ffn),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    if text["architectures"] == ["Qwen2ForCausalLM"]:
        layer |= {
            "self_attn.q_proj.bias": (width,),
            "self_attn.k_proj.bias": (key_width,),
            "self_attn.v_proj.bias": (key_width,),
        }
    shapes: Shapes = {
        "model.embed_tokens.weight": (text["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for index in range(text["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    if not text["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], width)
    return {f"language_model.{name}": shape for name, shape in shapes.items()}


def image_text(num_tiles: int, num_image_token: int, use_thumbnail: bool) -> str:
    """What its processor puts in place of the mark `<image>`."""
    tags = [f"<tile_{number}>" for number in range(1, num_tiles)]
    if use_thumbnail:
        tags.append("<tile_global_thumbnail>")
    tiles = "".join(tag + PLACEHOLDER * num_image_token for tag in tags)
    return f"<Image>{tiles}</Image>"


def place_images(tokenizer: Any, prompt: str, images: list[str]) -> list[int]:
    """Token ids of `prompt` with `images` in place of its marks (NVLMMultiModalProcessor, 0.33).

    A mark is the ids of `<image>` and a newline, wherever they follow one another; in their place
    come the ids of the image's text and those of a newline, each tokenised alone.
    """
    ids, encode = tokenizer(prompt).input_ids, tokenizer.encode
    mark = encode("<image>\n", add_special_tokens=False)
    start = 0
    for image in images:
        start = next(i for i in range(start, len(ids)) if ids[i : i + len(mark)] == mark)
        block = encode(image, add_special_tokens=False) + encode("\n", add_special_tokens=False)
        ids[start : start + len(mark)] = block
        start += len(block)
    return ids
