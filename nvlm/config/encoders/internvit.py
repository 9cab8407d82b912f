"""InternViT, in its variants of norms and biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from nvlm.config.encoders.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    NUM_COLOUR_CHANNELS,
    feature_layer_numbers,
    feature_layer_problems,
)
from nvlm.config.section import Section
from nvlm.config.values import Count, FeatureLayers, NumLayers, Positive, Switch
from nvlm.rows import ONES, ZEROS, Constant, Normal, Parameter, ZeroHeads


class InternViTConfig(Section):
    """InternViT. configs/model has the 6B-448px-V1-5 (in nvlm_d_72b.yaml) and the 300M-448px."""

    kind: Literal["internvit"] = "internvit"
    """Which encoder."""
    num_layers: NumLayers
    """Transformer layers."""
    hidden_size: Count
    """Width of a patch's hidden state."""
    ffn_hidden_size: Count
    """Width inside the MLP of a layer."""
    num_attention_heads: Count
    """Attention heads, each `hidden_size / num_attention_heads` wide."""
    num_stored_attention_heads: Count
    """Heads that checkpoints store: the real ones and then zero ones. Constant, so that the model's
    shape never depends on the tensor-parallel size; the released NVLM-D stores 25 as 32."""
    image_size: Count = 448
    """Width and height of a tile, in pixels."""
    patch_size: Count = 14
    """Width and height of a patch, in pixels."""
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    """Norm of the layers. The 6B has RMSNorm, norms of queries and keys over all heads together,
    and no bias on q, k and v; the 300M has LayerNorm, no such norms, and the bias."""
    qk_layernorm: Switch = True
    """Norms of queries and keys, over all heads together."""
    qkv_bias: Switch = False
    """Bias of the query, key and value projections."""
    feature_layers: FeatureLayers | None = None
    """Layers whose hidden states are the features, channels side by side, such as [-24, -12, -1];
    counted from the last, -1, which is one of them. null: the last alone. docs/encoders.md."""
    norm_epsilon: Positive = 1e-6
    """Added to the variance in every norm."""
    layer_scale_init: Positive = 0.1
    """First value of the factors on each layer's two outputs (layer scale)."""
    init_std: Positive = 0.02
    """Standard deviation of random first weights."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def feature_size(self) -> int:
        return self.hidden_size * max(1, len(self.feature_layer_numbers))

    @property
    def feature_layer_numbers(self) -> tuple[int, ...]:
        """Counted from the first layer, 1; empty where the last one's are the features."""
        return feature_layer_numbers(self.feature_layers, self.num_layers)

    @property
    def num_patches(self) -> int:
        """Patches of a tile, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        return 1 + self.num_patches

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        return IMAGENET_MEAN, IMAGENET_STD

    @property
    def parts(self) -> Mapping[str, InternViTConfig]:
        return {"": self}

    @property
    def num_computed_layers(self) -> int:
        return self.num_layers

    @property
    def attention_width(self) -> int:
        return self.num_stored_attention_heads * self.head_dim

    @property
    def inner_widths(self) -> tuple[int, int]:
        return self.ffn_hidden_size, self.ffn_hidden_size

    @property
    def is_split(self) -> bool:
        return True

    def problems(self) -> Iterator[str]:
        if self.hidden_size % self.num_attention_heads:
            yield not_multiple(self, "hidden_size", "num_attention_heads")
        if self.num_stored_attention_heads < self.num_attention_heads:
            yield (
                f"model.vision.num_stored_attention_heads {self.num_stored_attention_heads} is less"
                f" than model.vision.num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            yield not_multiple(self, "image_size", "patch_size")
        yield from feature_layer_problems(self.feature_layers, self.num_layers)
        if self.feature_layers and self.feature_layers[-1] != -1:
            yield (
                f"model.vision.feature_layers {list(self.feature_layers)} ends before the last "
                "layer: all layers of an InternViT are built, so that -1 has to be among them"
            )

    def split_sizes(self) -> dict[str, int]:
        return {
            "num_stored_attention_heads": self.num_stored_attention_heads,
            "ffn_hidden_size": self.ffn_hidden_size,
        }

    def parameters(self) -> Iterator[Parameter]:
        """In its variants of norms and biases."""
        hidden, normal = self.hidden_size, Normal(self.init_std)
        patch = (NUM_COLOUR_CHANNELS, self.patch_size, self.patch_size)
        yield Parameter("embeddings.class_embedding", (1, 1, hidden), normal)
        yield Parameter("embeddings.patch_embedding.weight", (hidden, *patch), normal)
        yield Parameter("embeddings.patch_embedding.bias", (hidden,), ZEROS)
        yield Parameter("embeddings.position_embedding", (1, self.num_positions, hidden), normal)
        for row in _layer(self):
            yield replace(row, key=f"decoder.layers.{row.key}", num_layers=self.num_layers)


def not_multiple(vision: object, key: str, divisor_key: str) -> str:
    """The line that says so of two keys of `model.vision`."""
    value, divisor = getattr(vision, key), getattr(vision, divisor_key)
    return f"model.vision.{key} {value} is not a multiple of model.vision.{divisor_key} {divisor}"


def _layer(vision: InternViTConfig) -> Iterator[Parameter]:
    hidden, ffn = vision.hidden_size, vision.ffn_hidden_size
    width = vision.num_stored_attention_heads * vision.head_dim
    real_width = vision.num_attention_heads * vision.head_dim
    normal = Normal(vision.init_std)
    residual = normal.into_residual(vision.num_layers)
    layer_scale = Constant(vision.layer_scale_init)
    # Per head its queries, its keys and its values.
    of_qkv, of_heads = ZeroHeads(0, 3 * real_width), ZeroHeads(0, real_width)

    yield from _norm("input_layernorm", vision)
    yield Parameter(
        "self_attention.linear_qkv.weight", (3 * width, hidden), normal, 0, zero_heads=of_qkv
    )
    if vision.qkv_bias:
        yield Parameter("self_attention.linear_qkv.bias", (3 * width,), ZEROS, 0, zero_heads=of_qkv)
    if vision.qk_layernorm:
        for name in ("q_layernorm", "k_layernorm"):
            yield Parameter(f"self_attention.{name}.weight", (width,), ONES, 0, zero_heads=of_heads)
    yield Parameter(
        "self_attention.linear_proj.weight", (hidden, width), residual, 1,
        zero_heads=ZeroHeads(1, real_width),
    )  # fmt: skip
    yield Parameter("self_attention.linear_proj.bias", (hidden,), ZEROS)
    yield Parameter("self_attn_bda.scale", (hidden,), layer_scale)
    yield from _norm("pre_mlp_layernorm", vision)
    yield Parameter("mlp.linear_fc1.weight", (ffn, hidden), normal, 0)
    yield Parameter("mlp.linear_fc1.bias", (ffn,), ZEROS, 0)
    yield Parameter("mlp.linear_fc2.weight", (hidden, ffn), residual, 1)
    yield Parameter("mlp.linear_fc2.bias", (hidden,), ZEROS)
    yield Parameter("mlp_bda.scale", (hidden,), layer_scale)


def _norm(name: str, vision: InternViTConfig) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (vision.hidden_size,), ONES)
    if vision.normalization == "LayerNorm":
        yield Parameter(f"{name}.bias", (vision.hidden_size,), ZEROS)
