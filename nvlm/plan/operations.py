"""Floating-point operations of a sequence by component, as `nvlm.sizes.flops` counts them.

With what balancing leaves out there: the convolution that makes patches of pixels. Operations that
recomputation does twice are not counted: these are what the training needs, of which the share of a
card's peak (MFU) is taken. Padding is computed, and counts; so do the encoder's zero heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from nvlm.config.schema import ModelConfig, RunConfig
from nvlm.plan.work import Work
from nvlm.sizes.flops import forward_flops
from nvlm.sizes.parameters import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    component_parameters,
    count_parameters,
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
        + forward.per_token_pair * work.token_pairs,
    )


def sequence_flops(config: RunConfig, work: Work) -> Flops:
    """Of a sequence in training, forwards and backwards, as `stage.freeze` needs them."""
    forward = sequence_forward_flops(config, work)
    attention = forward_flops(config.model).per_token_pair * work.token_pairs
    shares = trainable_shares(config)
    vision, projector = shares[VISION], shares[PROJECTOR]
    # No gradient of pixels is computed.
    patches = work.num_tiles * patch_flops(config)
    return Flops(
        encoder=forward.encoder * (2 + vision) - patches if vision else forward.encoder,
        projector=forward.projector * (1 + projector + (projector > 0 or vision > 0)),
        # The decoder always passes gradients on to the projector or to its own lower layers.
        decoder=(forward.decoder - attention) * (2 + shares[LANGUAGE]) + 3 * attention,
    )


def patch_flops(config: RunConfig) -> int:
    """Of the convolution that makes the patches of a tile, forwards."""
    vision = config.model.vision
    (weight,) = (
        row
        for row in component_parameters(config.model, VISION)
        if row.key.endswith("patch_embedding.weight")
    )
    return 2 * weight.size * vision.num_patches


def trainable_shares(config: RunConfig) -> Mapping[str, float]:
    """Component -> how much of its parameters trains, from 0 to 1."""
    return _shares(config.model, tuple(config.stage.freeze))  # type: ignore[arg-type]


@lru_cache(maxsize=8)  # asked for by every part of every candidate of a search
def _shares(model: ModelConfig, freeze: tuple[str, ...]) -> Mapping[str, float]:
    named = parameters_by_name(model)
    counts = {
        component: count_parameters(named, freeze, component)
        for component in (VISION, PROJECTOR, LANGUAGE)
    }
    return {component: count.trainable / count.total for component, count in counts.items()}
