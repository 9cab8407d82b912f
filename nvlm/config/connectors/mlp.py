"""NVLM-D's projector: pixel shuffle and a two-layer MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from nvlm.config.connectors.sizes import (
    ConnectorSizes,
    KeptNumbers,
    Product,
    norm_parameters,
    shuffle_problems,
    shuffled,
)
from nvlm.config.section import Section
from nvlm.config.values import Count, Positive, ShuffleFactor
from nvlm.rows import Normal, Parameter


class MLPConfig(Section):
    """Pixel shuffle, LayerNorm, linear, GELU, linear; no biases in the linears (paper section
    4.5)."""

    kind: Literal["mlp"] = "mlp"
    """Which connector."""
    ffn_hidden_size: Count
    """Width between the two linears."""
    pixel_shuffle: ShuffleFactor = 2
    """Patches along each side that become one token, with the channels of all of them."""
    norm_epsilon: Positive = 1e-6
    """Added to the variance in the norm."""
    init_std: Positive = 0.014
    """Standard deviation of random first weights."""

    def num_tokens(self, sizes: ConnectorSizes) -> int:
        return shuffled(self.pixel_shuffle, sizes)[0]

    def token_size(self, sizes: ConnectorSizes) -> int:
        """Channels of a token before the first linear: those of its patches, side by side."""
        return shuffled(self.pixel_shuffle, sizes)[1]

    def problems(self, sizes: ConnectorSizes) -> Iterator[str]:
        yield from shuffle_problems(self.pixel_shuffle, sizes)

    def split_sizes(self) -> dict[str, int]:
        return {"ffn_hidden_size": self.ffn_hidden_size}

    def products(self, sizes: ConnectorSizes) -> list[Product]:
        num_tokens, size = self.num_tokens(sizes), self.token_size(sizes)
        return [
            Product(num_tokens, size, self.ffn_hidden_size, is_split=True),
            Product(num_tokens, self.ffn_hidden_size, sizes.hidden_size, is_split=True),
        ]

    def kept_numbers(self, sizes: ConnectorSizes, tensor_size: int) -> KeptNumbers:
        """Of a tile for the backward pass: input and output of the norm, both sides of the GELU."""
        num_tokens, inner = self.num_tokens(sizes), self.ffn_hidden_size // tensor_size
        return KeptNumbers(num_tokens * 2 * (self.token_size(sizes) + inner), 2 * num_tokens)

    def parameters(self, sizes: ConnectorSizes) -> Iterator[Parameter]:
        size, ffn, normal = self.token_size(sizes), self.ffn_hidden_size, Normal(self.init_std)
        yield from norm_parameters(size)
        yield Parameter("mlp.linear_fc1.weight", (ffn, size), normal, 0)
        yield Parameter("mlp.linear_fc2.weight", (sizes.hidden_size, ffn), normal, 1)
