"""Kinds of `model.language.rope_scaling`: slower rotary embeddings for longer sequences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Tag

from nvlm.config.section import Section
from nvlm.config.section_kinds import kind_or
from nvlm.config.values import Count, Positive


class Llama3ScalingConfig(Section):
    """Llama 3's: of the rotary embedding, waves longer than
    `original_max_position_embeddings / low_freq_factor` are stretched by `factor`, those shorter
    than `original_max_position_embeddings / high_freq_factor` are left, and between them it
    changes smoothly."""

    kind: Literal["llama3"] = "llama3"
    """Which scaling."""
    factor: Positive
    """By how much long waves are stretched (8 in Llama 3.1, 32 in the small Llama 3.2)."""
    low_freq_factor: Positive = 1.0
    """Where stretching is whole."""
    high_freq_factor: Positive = 4.0
    """Where stretching begins."""
    original_max_position_embeddings: Count = 8192
    """Longest sequence of the training before, in tokens."""

    @property
    def attention_scale(self) -> float:
        """Factor on the products of queries and keys."""
        return 1.0

    def problems(self, max_position_embeddings: int) -> Iterator[str]:
        if self.low_freq_factor >= self.high_freq_factor:
            yield (
                f"low_freq_factor {self.low_freq_factor:g} must be less than high_freq_factor "
                f"{self.high_freq_factor:g}"
            )


class YarnScalingConfig(Section):
    """YaRN (arXiv 2309.00071), as Qwen2 and 2.5 ask for it beyond 32,768 tokens: waves that turn
    more than `beta_fast` times within `original_max_position_embeddings` are left, those that turn
    less than `beta_slow` times are stretched by `factor`, and between them it changes evenly with
    the channel."""

    kind: Literal["yarn"] = "yarn"
    """Which scaling."""
    factor: Positive
    """By how much long waves are stretched: 4 for 131,072 tokens of a Qwen2."""
    original_max_position_embeddings: Count = 32768
    """Longest sequence of the training before, in tokens."""
    beta_fast: Positive = 32.0
    """Turns beyond which a wave is left as it is."""
    beta_slow: Positive = 1.0
    """Turns below which a wave is stretched whole."""
    attention_factor: Positive | None = None
    """Factor on queries and keys. null: `0.1 ln(factor) + 1`, as the paper recommends."""

    @property
    def factor_on_heads(self) -> float:
        """`attention_factor`, or what it is where it is null."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def attention_scale(self) -> float:
        """Factor on the products of queries and keys."""
        return self.factor_on_heads**2

    def problems(self, max_position_embeddings: int) -> Iterator[str]:
        if self.beta_slow >= self.beta_fast:
            yield f"beta_slow {self.beta_slow:g} must be less than beta_fast {self.beta_fast:g}"
        longest = self.factor * self.original_max_position_embeddings
        if max_position_embeddings > longest:
            yield (
                f"factor {self.factor:g} x original_max_position_embeddings "
                f"{self.original_max_position_embeddings} = {longest:g} is less than "
                f"model.language.max_position_embeddings {max_position_embeddings}"
            )


RopeScaling = Annotated[
    Annotated[Llama3ScalingConfig, Tag("llama3")] | Annotated[YarnScalingConfig, Tag("yarn")],
    kind_or("llama3"),
]
SCALINGS: dict[str, type[Llama3ScalingConfig] | type[YarnScalingConfig]] = {
    "llama3": Llama3ScalingConfig,
    "yarn": YarnScalingConfig,
}
