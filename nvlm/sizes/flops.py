"""Floating-point operations of the model, in training as a stage needs them.

    tokens:     2 x (weights of the decoder's matrices and the output layer)     per token
                of experts those of the top_k that a token goes through; of weights that image
                tokens have for themselves none, since each token goes through one matrix
    attention:  2 x layers x width of all heads  per pair of tokens of a document, half are masked
    tiles:      2 x (weights of the ViT's matrices) x (patches, class token and registers)
                + 4 x layers x width x (these)^2 + the projector                  per tile
    beside:     2 x (weights of cross-attention's keys and values) x tokens       per tile

times 1 for the forward pass, 1 for the gradient of the input and 1 for that of the weights, as far
as the stage needs them: a frozen encoder runs forwards only. Numbers are whole, the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm.config.encoders.settings import EncoderStack
from nvlm.config.schema import ModelConfig, RunConfig
from nvlm.sizes.adapters import adapters_of, frozen_patterns
from nvlm.sizes.components.visual_weights import is_visual
from nvlm.sizes.parameters import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    component_parameters,
    count_parameters,
    encoder_parts,
    parameters_by_name,
)


@dataclass(frozen=True)
class ForwardFlops:
    """Of one forward pass; the parts that differ in what a backward pass costs."""

    per_token: int
    per_token_pair: int  # of all pairs of a document; the causal mask leaves half of them
    encoder_per_tile: int
    projector_per_tile: int
    # Keys and values of cross-attention, of all tiles: of a hybrid's thumbnails, too, which have
    # none. What is left out: tags beside, and attention itself, of the 72B for a tile that 512
    # tokens see 0.3 % of what its encoder takes.
    beside_per_tile: int = 0


@dataclass(frozen=True)
class StepFlops:
    """Of training, forwards and backwards."""

    per_token: int
    per_token_pair: int
    per_tile: int

    def of_sequence(self, lengths: Sequence[int], num_tiles: int, sequence_length: int) -> int:
        """Of a sequence with documents of these lengths; the rest is a document of padding."""
        padding = sequence_length - sum(lengths)
        pairs = sum(length * length for length in lengths) + padding * padding
        return self.of_documents(sequence_length, pairs, num_tiles)

    def of_documents(self, num_tokens: int, num_token_pairs: int, num_tiles: int) -> int:
        """Of documents with so many tokens, pairs of tokens of one document, and tiles."""
        return (
            self.per_token * num_tokens
            + self.per_token_pair * num_token_pairs
            + self.per_tile * num_tiles
        )


def forward_flops(model: ModelConfig) -> ForwardFlops:
    language = model.language
    layers = _num_matrix_weights(model, LANGUAGE)
    heads_width = language.num_attention_heads * language.head_dim
    # These are of the tokens beside, and of no others.
    beside = sum(
        row.num_parameters
        for row in component_parameters(model, LANGUAGE)
        if row.key.endswith(".cross_attention.linear_kv.weight")
    )
    return ForwardFlops(
        # The output layer computes as much where it has no matrix of its own.
        per_token=2 * (layers - beside + language.hidden_size * language.vocab_size),
        per_token_pair=2 * language.num_layers * heads_width,
        encoder_per_tile=sum(map(stack_flops, model.vision.parts.values())),
        projector_per_tile=model.num_connectors
        * sum(product.flops for product in model.connector.products(model.connector_sizes)),
        beside_per_tile=2 * beside * model.num_tokens_per_tile,
    )


def step_flops(config: RunConfig) -> StepFlops:
    """What training computes with `stage.freeze`."""
    forward, adapters = forward_flops(config.model), adapter_flops(config)
    # The decoder always passes gradients on to the projector or to its own lower layers.
    language_passes = 2 + trainable_share(config, LANGUAGE)
    return StepFlops(
        per_token=round(forward.per_token * language_passes + 3 * adapters[LANGUAGE]),
        # Attention has no weights: forwards, and twice that backwards.
        per_token_pair=3 * forward.per_token_pair,
        per_tile=round(
            _encoder_flops(config)
            + 3 * adapters[VISION]
            + 3 * (forward.projector_per_tile + adapters[PROJECTOR])
            + forward.beside_per_tile * language_passes
        ),
    )


def _encoder_flops(config: RunConfig) -> float:
    """Of a tile through the encoders, forwards and, of those that train, backwards."""
    adapted = {adapter.module for adapter in adapters_of(config)}
    total = 0.0
    for name, part in encoder_parts(config.model).items():
        share = trainable_share(config, name)
        trains = share or any(module.startswith(f"{name}.") for module in adapted)
        total += stack_flops(part) * (2 + share if trains else 1)
    return total


def trainable_share(config: RunConfig, component: str) -> float:
    """How much of a component's parameters trains, from 0 to 1; of the model, without adapters."""
    named = parameters_by_name(config.model)
    count = count_parameters(named, frozen_patterns(config), component)
    return count.trainable / count.total


def adapter_flops(config: RunConfig) -> dict[str, int]:
    """Component -> of its adapters forwards, for each token of the decoder, else for each tile."""
    model = config.model
    rows = {
        **{name: part.num_positions for name, part in encoder_parts(model).items()},
        PROJECTOR: model.connector.num_tokens(model.connector_sizes),
        LANGUAGE: 1,
    }
    found: dict[str, int] = dict.fromkeys((VISION, PROJECTOR, LANGUAGE), 0)
    for adapter in adapters_of(config):
        sizes = [row.size for row in adapter.parameters() if len(row.shape) == 2]
        (times,) = (n for part, n in rows.items() if adapter.module.startswith(f"{part}."))
        found[adapter.matrix.component] += 2 * sum(sizes) * times
    return found


def stack_flops(stack: EncoderStack) -> int:
    """Of a tile through the layers of an encoder."""
    width, hidden, positions = stack.attention_width, stack.hidden_size, stack.num_positions
    weights = 4 * width * hidden + sum(stack.inner_widths) * hidden
    of_layer = 2 * weights * positions + 4 * width * positions**2
    return stack.num_computed_layers * of_layer


def _num_matrix_weights(model: ModelConfig, component: str) -> int:
    """Weights of a stack's layers that a token is multiplied with."""
    moe = model.language.moe
    return sum(
        row.num_parameters * moe.top_k // row.num_experts
        if moe and row.num_experts
        else row.num_parameters
        for row in component_parameters(model, component)
        if len(row.shape) == 2 and row.num_layers and not is_visual(row)
    )
