"""NVLM-X's projector: pixel shuffle and one linear layer."""

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
from nvlm.config.values import Positive, ShuffleFactor
from nvlm.rows import Normal, Parameter


class LinearConfig(Section):
    """Pixel shuffle, LayerNorm and one linear without a bias, the same on every tensor-parallel
    rank."""

    kind: Literal["linear"] = "linear"
    """Which connector."""
    pixel_shuffle: ShuffleFactor = 2
    """Patches along each side that become one token, with the channels of all of them."""
    norm_epsilon: Positive = 1e-6
    """Added to the variance in the norm."""
    init_std: Positive = 0.014
    """Standard deviation of random first weights."""

    def num_tokens(self, sizes: ConnectorSizes) -> int:
        return shuffled(self.pixel_shuffle, sizes)[0]

    def token_size(self, sizes: ConnectorSizes) -> int:
        """Channels of a token before the linear: those of its patches, side by side."""
        return shuffled(self.pixel_shuffle, sizes)[1]

    def problems(self, sizes: ConnectorSizes) -> Iterator[str]:
        yield from shuffle_problems(self.pixel_shuffle, sizes)

    def split_sizes(self) -> dict[str, int]:
        return {}

    def products(self, sizes: ConnectorSizes) -> list[Product]:
        return [Product(self.num_tokens(sizes), self.token_size(sizes), sizes.hidden_size)]

    def kept_numbers(self, sizes: ConnectorSizes, tensor_size: int) -> KeptNumbers:
        """Of a tile for the backward pass: input and output of the norm."""
        num_tokens = self.num_tokens(sizes)
        return KeptNumbers(num_tokens * 2 * self.token_size(sizes), 2 * num_tokens)

    def parameters(self, sizes: ConnectorSizes) -> Iterator[Parameter]:
        size = self.token_size(sizes)
        yield from norm_parameters(size)
        yield Parameter("linear.weight", (sizes.hidden_size, size), Normal(self.init_std))
