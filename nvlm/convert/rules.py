"""Conversion as tables: which Hugging Face tensors make one Megatron-core tensor, and back.

A `Rule` speaks of whole (global) tensors under the names that distributed checkpoints use, so it
holds at every process layout: a rank slices what it needs. The names of layers do not contain the
layer's number there; checkpoints stack layers along a first axis.

Shape suffixes: h heads, d channels per head, g query groups, c input channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nvlm.config.schema import LanguageConfig, ModelConfig, ProjectorConfig, VisionConfig
from nvlm.errors import ConvertError

Shape = tuple[int, ...]


def _only(tensors: Sequence[Tensor]) -> Tensor:
    (tensor,) = tensors
    return tensor


def _as_list(tensor: Tensor) -> list[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Rule:
    """One Megatron-core tensor and the Hugging Face tensors that it is made of.

    key: its name in the checkpoint; of a layer's tensor, the name of the whole stack.
    shape: its shape, of one layer.
    sources: Hugging Face name -> shape; names of layers contain `{layer}`.
    num_layers: layers in the stack; None for a tensor that no layer owns.
    join: Hugging Face tensors, in order of `sources` -> the Megatron-core tensor.
    split: the inverse of `join`.
    dummy_heads: the part of the Megatron-core tensor that belongs to stored heads beyond the real
        ones. It must be zero: such heads would otherwise take part in the model, and in QK-norm.
    """

    key: str
    shape: Shape
    sources: dict[str, Shape]
    num_layers: int | None = None
    join: Callable[[Sequence[Tensor]], Tensor] = _only
    split: Callable[[Tensor], list[Tensor]] = _as_list
    dummy_heads: Callable[[Tensor], Tensor] | None = None

    def names(self, layer: int | None) -> list[str]:
        return [name.format(layer=layer) for name in self.sources]

    def layers(self) -> Iterator[int | None]:
        yield from [None] if self.num_layers is None else range(self.num_layers)


def to_megatron(
    rule: Rule, layer: int | None, read: Callable[[str], Tensor], origin: object = "the source"
) -> Tensor:
    """The whole Megatron-core tensor of `rule`, in the data type that `read` returns.

    Raises:
        ConvertError: heads that should be zero are not; `origin` is where the message says so.
    """
    tensor = rule.join([read(name) for name in rule.names(layer)])
    assert tensor.shape == rule.shape, (rule.key, tensor.shape, rule.shape)
    check_dummy_heads(rule, layer, tensor, origin)
    return tensor


def to_hugging_face(rule: Rule, layer: int | None, tensor: Tensor) -> dict[str, Tensor]:
    """The Hugging Face tensors, by name, that the whole Megatron-core `tensor` consists of.

    Raises:
        ConvertError: heads that should be zero are not.
    """
    assert tensor.shape == rule.shape, (rule.key, tensor.shape, rule.shape)
    check_dummy_heads(rule, layer, tensor, "the checkpoint")
    parts = rule.split(tensor)
    for part, shape in zip(parts, rule.sources.values(), strict=True):
        assert part.shape == shape, (rule.key, part.shape, shape)
    return dict(zip(rule.names(layer), parts, strict=True))


def check_dummy_heads(rule: Rule, layer: int | None, tensor: Tensor, origin: object) -> None:
    """Raise `ConvertError` unless the stored heads beyond the real ones are zero in `tensor`."""
    if rule.dummy_heads is None:
        return
    part = rule.dummy_heads(tensor)
    if bool(part.any()):
        raise ConvertError(
            f"{origin}: {', '.join(rule.names(layer))}: stored heads beyond "
            f"model.vision.num_attention_heads must be zero, but hold values up to "
            f"{part.abs().max().item():.3g}: the heads are in another order, or were changed by a "
            "program that does not know of zero heads; start from weights of the real heads only"
        )


def expected_tensors(rules: Sequence[Rule]) -> dict[str, Shape]:
    """Every Hugging Face name that `rules` read, with its shape."""
    return {
        name.format(layer=layer): shape
        for rule in rules
        for layer in rule.layers()
        for name, shape in rule.sources.items()
    }


def num_parameters(rules: Sequence[Rule]) -> int:
    """Parameters in the Megatron-core tensors of `rules`."""
    return sum(prod(rule.shape) * (rule.num_layers or 1) for rule in rules)


# ------------------------------------------------------------------------------------ architectures


def export_rules(model: ModelConfig) -> list[Rule]:
    """The tensors of an NVLM-D folder as released: padded InternViT, `mlp1`, language model."""
    return [
        *vision_rules(model.vision, model.vision.num_stored_attention_heads, "vision_model."),
        *projector_rules(model.projector, model.vision, model.language),
        *language_rules(model.language, "language_model."),
    ]


def vision_rules(vision: VisionConfig, num_hf_heads: int, hf_prefix: str = "") -> list[Rule]:
    """InternViT, in its variants of norms and biases (names as OpenGVLab publishes it).

    `num_hf_heads` heads are in the Hugging Face tensors: the real ones, or zero ones after them.
    """
    hidden, ffn, num_layers = vision.hidden_size, vision.ffn_hidden_size, vision.num_layers
    stored, head_dim = vision.num_stored_attention_heads, vision.head_dim
    width, hf_width = stored * head_dim, num_hf_heads * head_dim
    real_width = vision.num_attention_heads * head_dim
    patch = (hidden, 3, vision.patch_size, vision.patch_size)

    def whole(key: str, name: str, shape: Shape) -> Rule:
        return Rule(f"vision_model.embeddings.{key}", shape, {hf_prefix + name: shape})

    def layer(key: str, name: str, shape: Shape, hf_shape: Shape | None = None, **how) -> Rule:
        return Rule(
            f"vision_model.decoder.layers.{key}",
            shape,
            {f"{hf_prefix}encoder.layers.{{layer}}.{name}": hf_shape or shape},
            num_layers,
            **how,
        )

    def padded(axis: int) -> dict:
        return {
            "join": lambda tensors: _pad(tensors[0], axis, width),
            "split": lambda tensor: [tensor.narrow(axis, 0, hf_width).clone()],
            "dummy_heads": lambda tensor: tensor.narrow(axis, real_width, width - real_width),
        }

    def norm(key: str, name: str) -> list[Rule]:
        weight = layer(f"{key}.weight", f"{name}.weight", (hidden,))
        if vision.normalization == "RMSNorm":
            return [weight]
        return [weight, layer(f"{key}.bias", f"{name}.bias", (hidden,))]

    interleaved = {
        "join": lambda tensors: _pad(_interleave_heads(tensors[0], num_hf_heads), 0, 3 * width),
        "split": lambda tensor: [_separate_heads(tensor[: 3 * hf_width], num_hf_heads)],
        "dummy_heads": lambda tensor: tensor[3 * real_width :],
    }
    rules = [
        whole("class_embedding", "embeddings.class_embedding", (1, 1, hidden)),
        whole("position_embedding", "embeddings.position_embedding",
              (1, vision.num_patches + 1, hidden)),
        whole("patch_embedding.weight", "embeddings.patch_embedding.weight", patch),
        whole("patch_embedding.bias", "embeddings.patch_embedding.bias", (hidden,)),
        *norm("input_layernorm", "norm1"),
        layer("self_attention.linear_qkv.weight", "attn.qkv.weight",
              (3 * width, hidden), (3 * hf_width, hidden), **interleaved),
        layer("self_attention.linear_proj.weight", "attn.proj.weight",
              (hidden, width), (hidden, hf_width), **padded(1)),
        layer("self_attention.linear_proj.bias", "attn.proj.bias", (hidden,)),
        layer("self_attn_bda.scale", "ls1", (hidden,)),
        *norm("pre_mlp_layernorm", "norm2"),
        layer("mlp.linear_fc1.weight", "mlp.fc1.weight", (ffn, hidden)),
        layer("mlp.linear_fc1.bias", "mlp.fc1.bias", (ffn,)),
        layer("mlp.linear_fc2.weight", "mlp.fc2.weight", (hidden, ffn)),
        layer("mlp.linear_fc2.bias", "mlp.fc2.bias", (hidden,)),
        layer("mlp_bda.scale", "ls2", (hidden,)),
    ]  # fmt: skip
    if vision.qkv_bias:
        rules.append(
            layer("self_attention.linear_qkv.bias", "attn.qkv.bias",
                  (3 * width,), (3 * hf_width,), **interleaved)
        )  # fmt: skip
    if vision.qk_layernorm:
        rules += [
            layer("self_attention.q_layernorm.weight", "attn.q_norm.weight",
                  (width,), (hf_width,), **padded(0)),
            layer("self_attention.k_layernorm.weight", "attn.k_norm.weight",
                  (width,), (hf_width,), **padded(0)),
        ]  # fmt: skip
    return rules


def projector_rules(
    projector: ProjectorConfig, vision: VisionConfig, language: LanguageConfig
) -> list[Rule]:
    """`mlp1`: LayerNorm (0), linear (1), GELU (2, no weights), linear (3)."""
    width = 4 * vision.hidden_size

    def rule(key: str, name: str, shape: Shape) -> Rule:
        return Rule(f"vision_projection.{key}", shape, {f"mlp1.{name}": shape})

    return [
        rule("norm.weight", "0.weight", (width,)),
        rule("norm.bias", "0.bias", (width,)),
        rule("mlp.linear_fc1.weight", "1.weight", (projector.ffn_hidden_size, width)),
        rule("mlp.linear_fc2.weight", "3.weight",
             (language.hidden_size, projector.ffn_hidden_size)),
    ]  # fmt: skip


def language_rules(language: LanguageConfig, hf_prefix: str = "") -> list[Rule]:
    """Qwen2 (with `qkv_bias`) or Llama (without): grouped queries, SwiGLU.

    Where embeddings and output layer share their weights, neither side stores the output layer.
    """
    hidden, ffn, vocab = language.hidden_size, language.ffn_hidden_size, language.vocab_size
    head_dim, num_groups = language.head_dim, language.num_query_groups
    query_rows = language.num_attention_heads * head_dim
    key_rows = num_groups * head_dim
    # Rows of a group in Megatron-core's fused tensor: its queries, its key, its value.
    group_rows = [query_rows // num_groups, head_dim, head_dim]

    def whole(key: str, name: str, shape: Shape) -> Rule:
        return Rule(f"language_model.{key}", shape, {hf_prefix + name: shape})

    def layer(key: str, names: dict[str, Shape], shape: Shape, **how) -> Rule:
        sources = {f"{hf_prefix}model.layers.{{layer}}.{name}": s for name, s in names.items()}
        key = f"language_model.decoder.layers.{key}"
        return Rule(key, shape, sources, language.num_layers, **how)

    grouped = {
        "join": lambda tensors: _join_groups(tensors, num_groups),
        "split": lambda tensor: _split_groups(tensor, num_groups, group_rows),
    }
    gate_and_up = {
        "join": torch.cat,
        "split": lambda tensor: [part.clone() for part in tensor.chunk(2)],
    }
    fused_rows = query_rows + 2 * key_rows
    rules = [
        whole("embedding.word_embeddings.weight", "model.embed_tokens.weight", (vocab, hidden)),
        layer("input_layernorm.weight", {"input_layernorm.weight": (hidden,)}, (hidden,)),
        layer(
            "self_attention.linear_qkv.weight",
            {
                "self_attn.q_proj.weight": (query_rows, hidden),
                "self_attn.k_proj.weight": (key_rows, hidden),
                "self_attn.v_proj.weight": (key_rows, hidden),
            },
            (fused_rows, hidden),
            **grouped,
        ),
        layer("self_attention.linear_proj.weight",
              {"self_attn.o_proj.weight": (hidden, query_rows)}, (hidden, query_rows)),
        layer("pre_mlp_layernorm.weight",
              {"post_attention_layernorm.weight": (hidden,)}, (hidden,)),
        layer(
            "mlp.linear_fc1.weight",
            {"mlp.gate_proj.weight": (ffn, hidden), "mlp.up_proj.weight": (ffn, hidden)},
            (2 * ffn, hidden),
            **gate_and_up,
        ),
        layer("mlp.linear_fc2.weight", {"mlp.down_proj.weight": (hidden, ffn)}, (hidden, ffn)),
        whole("decoder.final_layernorm.weight", "model.norm.weight", (hidden,)),
    ]  # fmt: skip
    if not language.share_embeddings_and_output_weights:
        rules.append(whole("output_layer.weight", "lm_head.weight", (vocab, hidden)))
    if language.qkv_bias:
        bias = layer(
            "self_attention.linear_qkv.bias",
            {
                "self_attn.q_proj.bias": (query_rows,),
                "self_attn.k_proj.bias": (key_rows,),
                "self_attn.v_proj.bias": (key_rows,),
            },
            (fused_rows,),
            **grouped,
        )
        rules.insert(3, bias)
    return rules


# ------------------------------------------------------------------------------------------ layouts


def _pad(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Zeros appended along `axis`, up to `size`."""
    missing = list(tensor.shape)
    missing[axis] = size - tensor.shape[axis]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim=axis)


def _interleave_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows (or a bias) [all q, all k, all v] -> per head [q, k, v]. InternViT to Megatron-core."""
    blocks_3hd = tensor.view(3, num_heads, -1, *tensor.shape[1:])
    return blocks_3hd.transpose(0, 1).reshape(tensor.shape)


def _separate_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """The inverse of `_interleave_heads`."""
    blocks_h3d = tensor.view(num_heads, 3, -1, *tensor.shape[1:])
    return blocks_h3d.transpose(0, 1).reshape(tensor.shape)


def _join_groups(tensors: Sequence[Tensor], num_groups: int) -> Tensor:
    """q, k, v weights or biases -> per query group [its queries, its key, its value]."""
    rest = tensors[0].shape[1:]
    groups = [tensor.view(num_groups, -1, *rest) for tensor in tensors]
    return torch.cat(groups, dim=1).reshape(-1, *rest)


def _split_groups(tensor: Tensor, num_groups: int, group_rows: list[int]) -> list[Tensor]:
    """The inverse of `_join_groups`."""
    rest = tensor.shape[1:]
    parts = tensor.view(num_groups, -1, *rest).split(group_rows, dim=1)
    return [part.reshape(-1, *rest) for part in parts]
