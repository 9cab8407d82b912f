"""timm's plain ViTs: CLIP, SigLIP, DINOv2, AIMv2 and others, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from nvlm.config.encoders.settings import (
    NUM_COLOUR_CHANNELS,
    feature_layer_numbers,
    feature_layer_problems,
)
from nvlm.config.encoders.timm_models import TimmModel, timm_model, why_unknown
from nvlm.config.section import Section
from nvlm.config.values import Count, FeatureLayer, FeatureLayers, Name, NumLayers, Positive
from nvlm.rows import ONES, ZEROS, Constant, Normal, Parameter

# What a configuration may say otherwise than the model of its name.
_SIZES = ("image_size", "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
# Until `_take_sizes` has put the named model's in its place.
_BY_NAME: Any = None


class TimmConfig(Section):
    """A ViT of timm, the same on every tensor-parallel rank: hidden states of the patches, without
    class token and registers. docs/encoders.md."""

    kind: Literal["timm"] = "timm"
    """Which encoder."""
    name: Name
    """What timm calls it, such as `vit_so400m_patch16_siglip_512`. With its weights behind a dot
    (`vit_large_patch14_clip_336.openai`) pixels are normalised as those were trained with; without,
    as timm's default weights were."""
    feature_layer: FeatureLayer = -1
    """Layer whose hidden states are the features, counted from the last, -1; those behind it are
    not built. LLaVA has -2."""
    feature_layers: FeatureLayers | None = None
    """Layers whose hidden states are the features, channels side by side, such as [-17, -9, -2], in
    the place of `feature_layer`. null: that one's. docs/encoders.md."""
    image_size: Count = Field(default=_BY_NAME)
    """Width and height of a tile, in pixels. null, as with the keys below: the named model's. Other
    sizes are whole patches; conversion interpolates learned positions, as timm does."""
    num_layers: NumLayers = Field(default=_BY_NAME)
    """Transformer layers."""
    hidden_size: Count = Field(default=_BY_NAME)
    """Width of a patch's hidden state."""
    ffn_hidden_size: Count = Field(default=_BY_NAME)
    """Width inside the MLP of a layer."""
    num_attention_heads: Count = Field(default=_BY_NAME)
    """Attention heads, each `hidden_size / num_attention_heads` wide."""
    init_std: Positive = 0.02
    """Standard deviation of random first weights."""

    @model_validator(mode="before")
    @classmethod
    def _take_sizes(cls, values: Any) -> Any:
        """A configuration has all sizes once it is read, whatever its name says."""
        model = timm_model(str(values.get("name"))) if isinstance(values, dict) else None
        if model is None:
            return values
        own = {key: value for key, value in values.items() if value is not None}
        return {**{key: getattr(model, key) for key in _SIZES}, **own}

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if timm_model(name) is None:
            raise PydanticCustomError("wrong_value", "{why}", {"why": why_unknown(name)})
        return name

    @property
    def model(self) -> TimmModel:
        """What is known by the name. Of sizes, the keys of this section are what counts."""
        model = timm_model(self.name)
        assert model is not None, "a name that was checked"
        return model

    @property
    def patch_size(self) -> int:
        return self.model.patch_size

    @property
    def feature_size(self) -> int:
        return self.hidden_size * max(1, len(self.feature_layer_numbers))

    @property
    def feature_layer_numbers(self) -> tuple[int, ...]:
        """Counted from the first layer, 1; empty where the last one's are the features."""
        return feature_layer_numbers(self.feature_layers, self.num_layers)

    @property
    def num_patches(self) -> int:
        # As published, SigLIP's 384 pixels are 27 patches of 14, and the last 6 are not read.
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        return self.model.num_prefix_tokens + self.num_patches

    @property
    def num_prefix_positions(self) -> int:
        """Learned positions in front of those of patches."""
        return self.model.num_prefix_tokens if self.model.positions == "all" else 0

    @property
    def pixel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.model.pixel_mean, self.model.pixel_std

    @property
    def parts(self) -> Mapping[str, TimmConfig]:
        return {"": self}

    @property
    def num_computed_layers(self) -> int:
        last = self.feature_layers[-1] if self.feature_layers else self.feature_layer
        return self.num_layers + 1 + last

    @property
    def attention_width(self) -> int:
        return self.hidden_size

    @property
    def inner_widths(self) -> tuple[int, int]:
        return self.ffn_hidden_size * (1 if self.model.mlp == "mlp" else 2), self.ffn_hidden_size

    @property
    def qk_layernorm(self) -> bool:
        return False

    @property
    def is_split(self) -> bool:
        return False

    def module_settings(self) -> dict[str, Any]:
        """What the module is made of, and an export's `vision_config` says."""
        model, (mean, std) = self.model, self.pixel_statistics
        names = (
            "patch_size class_token num_registers positions patch_bias patch_norm pre_norm norm "
            "norm_epsilon qkv_bias linear_bias mlp activation"
        )
        return {
            "name": self.name,
            **{key: getattr(self, key) for key in ("image_size", "hidden_size")},
            "ffn_hidden_size": self.ffn_hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "num_layers": self.num_computed_layers,
            **{key: getattr(model, key) for key in names.split()},
            **self._feature_layers(),
            "layer_scale": bool(model.layer_scale),
            "pixel_mean": list(mean),
            "pixel_std": list(std),
        }

    def _feature_layers(self) -> dict[str, Any]:
        """Nothing where the last built layer's are the features: so exports said it at first."""
        numbers = self.feature_layer_numbers
        return {"feature_layers": list(numbers)} if numbers else {}

    def problems(self) -> Iterator[str]:
        model = self.model
        if self.hidden_size % self.num_attention_heads:
            yield (
                f"model.vision.hidden_size {self.hidden_size} is not a multiple of "
                f"model.vision.num_attention_heads {self.num_attention_heads}"
            )
        if self.image_size % model.patch_size and self.image_size != model.image_size:
            yield (
                f"model.vision.image_size {self.image_size} is not a multiple of the "
                f"{model.patch_size} pixels that a patch of {self.name} has"
            )
        if self.feature_layer < -self.num_layers:
            yield (
                f"model.vision.feature_layer {self.feature_layer} is before the first of "
                f"{self.num_layers} layers"
            )
        yield from feature_layer_problems(self.feature_layers, self.num_layers)
        if self.feature_layers and self.feature_layer != -1:
            yield (
                f"model.vision.feature_layer {self.feature_layer} beside feature_layers "
                f"{list(self.feature_layers)}, which says all of them: give one of the two"
            )

    def split_sizes(self) -> dict[str, int]:
        return {}

    def parameters(self) -> Iterator[Parameter]:
        """By timm's names."""
        model, hidden, normal = self.model, self.hidden_size, Normal(self.init_std)
        if model.class_token:
            yield Parameter("cls_token", (1, 1, hidden), normal)
        if model.num_registers:
            yield Parameter("reg_token", (1, model.num_registers, hidden), normal)
        if model.positions != "none":
            num_positions = self.num_prefix_positions + self.num_patches
            yield Parameter("pos_embed", (1, num_positions, hidden), normal)
        patch = (NUM_COLOUR_CHANNELS, model.patch_size, model.patch_size)
        yield Parameter("patch_embed.proj.weight", (hidden, *patch), normal)
        if model.patch_bias:
            yield Parameter("patch_embed.proj.bias", (hidden,), ZEROS)
        if model.patch_norm:
            yield from self._norm("patch_embed.norm")
        if model.pre_norm:
            yield from self._norm("norm_pre")
        for layer in range(self.num_computed_layers):
            yield from self._layer(f"blocks.{layer}")

    def _layer(self, key: str) -> Iterator[Parameter]:
        model, hidden, ffn = self.model, self.hidden_size, self.ffn_hidden_size
        yield from self._norm(f"{key}.norm1")
        yield from self._linear(f"{key}.attn.qkv", 3 * hidden, hidden, model.qkv_bias)
        yield from self._linear(f"{key}.attn.proj", hidden, hidden, model.linear_bias)
        if model.layer_scale:
            yield Parameter(f"{key}.ls1.gamma", (hidden,), Constant(model.layer_scale))
        yield from self._norm(f"{key}.norm2")
        if model.mlp == "swiglu":
            yield from self._linear(f"{key}.mlp.fc1_g", ffn, hidden, model.linear_bias)
            yield from self._linear(f"{key}.mlp.fc1_x", ffn, hidden, model.linear_bias)
        else:
            inner = self.inner_widths[0]
            yield from self._linear(f"{key}.mlp.fc1", inner, hidden, model.linear_bias)
        yield from self._linear(f"{key}.mlp.fc2", hidden, ffn, model.linear_bias)
        if model.layer_scale:
            yield Parameter(f"{key}.ls2.gamma", (hidden,), Constant(model.layer_scale))

    def _norm(self, key: str) -> Iterator[Parameter]:
        yield Parameter(f"{key}.weight", (self.hidden_size,), ONES)
        if self.model.norm == "LayerNorm":
            yield Parameter(f"{key}.bias", (self.hidden_size,), ZEROS)

    def _linear(self, key: str, outputs: int, inputs: int, bias: bool) -> Iterator[Parameter]:
        yield Parameter(f"{key}.weight", (outputs, inputs), Normal(self.init_std))
        if bias:
            yield Parameter(f"{key}.bias", (outputs,), ZEROS)
