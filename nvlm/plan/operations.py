"""Floating-point operations of a sequence by component, as `nvlm.sizes.flops` counts them.

With what balancing leaves out there: the convolution that makes patches of pixels. Operations that
recomputation does twice are not counted: these are what the training needs, of which the share of a
card's peak (MFU) is taken. Padding is computed, and counts; so do the encoder's zero heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from nvlm.config.encoders.settings import NUM_COLOUR_CHANNELS, EncoderStack
from nvlm.config.schema import ModelConfig, RunConfig
from nvlm.plan.work import Work
from nvlm.sizes.adapters import adapters_of, frozen_patterns
from nvlm.sizes.flops import adapter_flops, forward_flops, stack_flops
from nvlm.sizes.parameters import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    count_parameters,
    encoder_parts,
    parameters_by_name,
)


@dataclass(frozen=True)
class Flops:
    """Of the three components."""

    encoder: float
    projector: float
    decoder: float

    @property
    def total(self) -> float:
        return self.encoder + self.projector + self.decoder

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.encoder * factor, self.projector * factor, self.decoder * factor)


def sequence_forward_flops(config: RunConfig, work: Work) -> Flops:
    """Of the forward pass of a sequence; the causal mask halves the decoder's attention."""
    forward = forward_flops(config.model)
    per_tile = forward.encoder_per_tile + patch_flops(config)
    return Flops(
        encoder=work.num_tiles * per_tile,
        projector=work.num_tiles * forward.projector_per_tile,
        decoder=forward.per_token * config.stage.sequence_length
        + forward.per_token_pair * work.token_pairs
        + forward.beside_per_tile * work.num_tiles,
    )


def sequence_flops(config: RunConfig, work: Work) -> Flops:
    """Of a sequence in training, forwards and backwards, as `stage.freeze` needs them."""
    forward = sequence_forward_flops(config, work)
    attention = forward_flops(config.model).per_token_pair * work.token_pairs
    shares, adapters = trainable_shares(config), adapter_flops(config)
    projector = shares[PROJECTOR]
    # No gradient of pixels is computed.
    encoder, encoder_trains = 0.0, trains(config, VISION)
    for name, part in encoder_parts(config.model).items():
        patches = work.num_tiles * part_patch_flops(part)
        of_part = work.num_tiles * stack_flops(part) + patches
        encoder += of_part * (2 + shares[name]) - patches if trains(config, name) else of_part
    projector_passes = 1 + projector + (trains(config, PROJECTOR) or encoder_trains)
    return Flops(
        encoder=encoder + 3 * adapters[VISION] * work.num_tiles,
        projector=forward.projector * projector_passes + 3 * adapters[PROJECTOR] * work.num_tiles,
        # The decoder always passes gradients on to the projector or to its own lower layers.
        decoder=(forward.decoder - attention) * (2 + shares[LANGUAGE])
        + 3 * attention
        + 3 * adapters[LANGUAGE] * config.stage.sequence_length,
    )


def patch_flops(config: RunConfig) -> int:
    """Of the convolution that makes the patches of a tile, forwards."""
    return sum(map(part_patch_flops, config.model.vision.parts.values()))


def part_patch_flops(part: EncoderStack) -> int:
    """The same of one encoder."""
    return 2 * NUM_COLOUR_CHANNELS * part.patch_size**2 * part.hidden_size * part.num_patches


def trainable_shares(config: RunConfig) -> Mapping[str, float]:
    """Component, or encoder of several -> how much of its parameters trains, from 0 to 1; adapters
    are not counted."""
    return _shares(config.model, frozen_patterns(config))  # type: ignore[arg-type]


def trains(config: RunConfig, component: str) -> bool:
    """Whether something of a component or an encoder trains, its adapters included."""
    adapted = any(adapter.module.startswith(f"{component}.") for adapter in adapters_of(config))
    return adapted or trainable_shares(config)[component] > 0


@lru_cache(maxsize=8)  # asked for by every part of every candidate of a search
def _shares(model: ModelConfig, freeze: tuple[str, ...]) -> Mapping[str, float]:
    named = parameters_by_name(model)
    counts = {
        component: count_parameters(named, freeze, component)
        for component in (VISION, *encoder_parts(model), PROJECTOR, LANGUAGE)
    }
    return {component: count.trainable / count.total for component, count in counts.items()}
