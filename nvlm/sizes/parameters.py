"""Numbers that follow from a configuration: parameters, tokens, batches. Imports no torch.

Parameter names are those of the model with local layers (`model.layer_implementation: local`);
Transformer Engine keeps a norm's weight in the linear layer that follows it: another name, the same
number. Shapes are whole ones, whatever the process layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nvlm.config.checks import check_world_size
from nvlm.config.schema import LanguageConfig, ModelConfig, ProjectorConfig, RunConfig, VisionConfig

Shape = tuple[int, ...]

VISION = "vision_model"
PROJECTOR = "vision_projection"
LANGUAGE = "language_model"
COMPONENTS = (VISION, PROJECTOR, LANGUAGE)

# Pixel shuffle stacks the channels of 2 x 2 patches.
NUM_SHUFFLED_PATCHES = 4
NUM_COLOUR_CHANNELS = 3


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one component."""

    total: int
    trainable: int

    @property
    def frozen(self) -> int:
        return self.total - self.trainable


@dataclass(frozen=True)
class DerivedNumbers:
    """What `nvlm config show` prints below the resolved configuration."""

    parameters: dict[str, ParameterCount]  # component -> count
    total: ParameterCount
    # InternViT's heads beyond the real ones: stored, always zero.
    num_padding_parameters: int
    # freeze pattern -> number of parameter tensors that it matches
    num_matches: dict[str, int]
    num_tokens_per_tile: int  # tile tag counted
    max_tiles_per_image: int  # thumbnail counted
    max_tokens_per_image: int  # tile tags counted, `<Image>` and `</Image>` not
    world_size: int
    data_parallel_size: int
    num_micro_batches: int  # per data-parallel rank and step
    max_tokens_per_step: int  # padding counted
    num_sequences: int  # over the whole run; samples, where the stage does not pack


def derive(config: RunConfig, world_size: int | None = None) -> DerivedNumbers:
    """Compute every derived number.

    Args:
        world_size: number of processes; None: the fewest that the layout needs.

    Raises:
        ConfigError: `world_size` does not fit the layout, or the batch does not fit it.
    """
    if world_size is None:
        world_size = config.parallel.model_parallel_size
    data_parallel_size = check_world_size(config, world_size)
    shapes = dict(parameter_shapes(config.model))
    parameters = {
        component: count_parameters(shapes, config.stage.freeze, f"{component}.*")
        for component in COMPONENTS
    }
    train = config.train
    return DerivedNumbers(
        parameters=parameters,
        total=count_parameters(shapes, config.stage.freeze),
        num_padding_parameters=num_padding_parameters(config.model.vision),
        num_matches={
            pattern: sum(fnmatchcase(name, pattern) for name in shapes)
            for pattern in config.stage.freeze
        },
        num_tokens_per_tile=config.num_tokens_per_tagged_tile,
        max_tiles_per_image=config.max_tiles_per_image,
        max_tokens_per_image=config.max_tiles_per_image * config.num_tokens_per_tagged_tile,
        world_size=world_size,
        data_parallel_size=data_parallel_size,
        num_micro_batches=train.global_batch_size // (data_parallel_size * train.micro_batch_size),
        max_tokens_per_step=train.global_batch_size * config.stage.sequence_length,
        num_sequences=train.steps * train.global_batch_size,
    )


def count_parameters(
    shapes: dict[str, Shape], freeze: list[str], component: str = "*"
) -> ParameterCount:
    """Parameters named like the pattern `component`; trainable: not named like a freeze pattern."""
    total = trainable = 0
    for name, shape in shapes.items():
        if fnmatchcase(name, component):
            size = math.prod(shape)
            total += size
            if not any(fnmatchcase(name, pattern) for pattern in freeze):
                trainable += size
    return ParameterCount(total, trainable)


def num_padding_parameters(vision: VisionConfig) -> int:
    """Parameters of InternViT's zero heads.

    Per channel: a row each for query, key and value, a column of the output, and where the variant
    has them three biases and two norm weights.
    """
    channels = (vision.num_stored_attention_heads - vision.num_attention_heads) * vision.head_dim
    per_channel = 4 * vision.hidden_size
    per_channel += 3 if vision.qkv_bias else 0
    per_channel += 2 if vision.qk_layernorm else 0
    return vision.num_layers * channels * per_channel


def parameter_shapes(model: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Name and whole shape of every parameter, in the order of the forward pass."""
    parts = {
        VISION: _vision_shapes(model.vision),
        PROJECTOR: _projector_shapes(model.projector, model.vision, model.language),
        LANGUAGE: _language_shapes(model.language),
    }
    for component, shapes in parts.items():
        for name, shape in shapes:
            yield f"{component}.{name}", shape


def _vision_shapes(vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    hidden, ffn = vision.hidden_size, vision.ffn_hidden_size
    stored = vision.num_stored_attention_heads * vision.head_dim
    patch = (NUM_COLOUR_CHANNELS, vision.patch_size, vision.patch_size)
    yield "embeddings.class_embedding", (1, 1, hidden)
    yield "embeddings.patch_embedding.weight", (hidden, *patch)
    yield "embeddings.patch_embedding.bias", (hidden,)
    yield "embeddings.position_embedding", (1, 1 + vision.num_patches, hidden)
    for index in range(vision.num_layers):
        layer = f"decoder.layers.{index}"
        yield from _norm_shapes(f"{layer}.input_layernorm", vision)
        yield f"{layer}.self_attention.linear_qkv.weight", (3 * stored, hidden)
        if vision.qkv_bias:
            yield f"{layer}.self_attention.linear_qkv.bias", (3 * stored,)
        if vision.qk_layernorm:
            yield f"{layer}.self_attention.q_layernorm.weight", (stored,)
            yield f"{layer}.self_attention.k_layernorm.weight", (stored,)
        yield f"{layer}.self_attention.linear_proj.weight", (hidden, stored)
        yield f"{layer}.self_attention.linear_proj.bias", (hidden,)
        yield f"{layer}.self_attn_bda.scale", (hidden,)  # LayerScale
        yield from _norm_shapes(f"{layer}.pre_mlp_layernorm", vision)
        yield f"{layer}.mlp.linear_fc1.weight", (ffn, hidden)
        yield f"{layer}.mlp.linear_fc1.bias", (ffn,)
        yield f"{layer}.mlp.linear_fc2.weight", (hidden, ffn)
        yield f"{layer}.mlp.linear_fc2.bias", (hidden,)
        yield f"{layer}.mlp_bda.scale", (hidden,)


def _norm_shapes(name: str, vision: VisionConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (vision.hidden_size,)
    if vision.normalization == "LayerNorm":
        yield f"{name}.bias", (vision.hidden_size,)


def _projector_shapes(
    projector: ProjectorConfig, vision: VisionConfig, language: LanguageConfig
) -> Iterator[tuple[str, Shape]]:
    shuffled = NUM_SHUFFLED_PATCHES * vision.hidden_size
    yield "norm.weight", (shuffled,)
    yield "norm.bias", (shuffled,)
    yield "mlp.linear_fc1.weight", (projector.ffn_hidden_size, shuffled)
    yield "mlp.linear_fc2.weight", (language.hidden_size, projector.ffn_hidden_size)


def _language_shapes(language: LanguageConfig) -> Iterator[tuple[str, Shape]]:
    hidden, ffn = language.hidden_size, language.ffn_hidden_size
    num_qkv_heads = language.num_attention_heads + 2 * language.num_query_groups
    qkv = num_qkv_heads * language.head_dim
    yield "embedding.word_embeddings.weight", (language.vocab_size, hidden)
    for index in range(language.num_layers):
        layer = f"decoder.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attention.linear_qkv.weight", (qkv, hidden)
        if language.qkv_bias:
            yield f"{layer}.self_attention.linear_qkv.bias", (qkv,)
        yield f"{layer}.self_attention.linear_proj.weight", (hidden, hidden)
        yield f"{layer}.pre_mlp_layernorm.weight", (hidden,)
        # SwiGLU: gate and up in one matrix.
        yield f"{layer}.mlp.linear_fc1.weight", (2 * ffn, hidden)
        yield f"{layer}.mlp.linear_fc2.weight", (hidden, ffn)
    yield "decoder.final_layernorm.weight", (hidden,)
    if not language.share_embeddings_and_output_weights:
        yield "output_layer.weight", (language.vocab_size, hidden)
