"""MM1's average pooling: the mean of blocks of patches and one linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from nvlm.config.connectors.sizes import ConnectorSizes, KeptNumbers, Product, block_problems
from nvlm.config.section import Section
from nvlm.config.values import Count, Positive
from nvlm.rows import ONES, ZEROS, Normal, Parameter


class AveragePoolingConfig(Section):
    """Mean of `pool_size` x `pool_size` patches, LayerNorm and one linear without a bias (MM1,
    section 3.1: n x n pooling and a linear projection), the same on every tensor-parallel rank."""

    kind: Literal["average_pooling"] = "average_pooling"
    """Which connector."""
    pool_size: Count = 2
    """Patches along each side that become one token, their mean."""
    norm_epsilon: Positive = 1e-6
    """Added to the variance in the norm."""
    init_std: Positive = 0.014
    """Standard deviation of random first weights."""

    def num_tokens(self, sizes: ConnectorSizes) -> int:
        return sizes.num_patches // self.pool_size**2

    def problems(self, sizes: ConnectorSizes) -> Iterator[str]:
        yield from block_problems("pool_size", self.pool_size, sizes)

    def split_sizes(self) -> dict[str, int]:
        return {}

    def products(self, sizes: ConnectorSizes) -> list[Product]:
        return [Product(self.num_tokens(sizes), sizes.channels, sizes.hidden_size)]

    def kept_numbers(self, sizes: ConnectorSizes, tensor_size: int) -> KeptNumbers:
        """Input and output of the norm."""
        num_tokens = self.num_tokens(sizes)
        return KeptNumbers(num_tokens * 2 * sizes.channels, 2 * num_tokens)

    def parameters(self, sizes: ConnectorSizes) -> Iterator[Parameter]:
        yield Parameter("norm.weight", (sizes.channels,), ONES)
        yield Parameter("norm.bias", (sizes.channels,), ZEROS)
        shape = (sizes.hidden_size, sizes.channels)
        yield Parameter("linear.weight", shape, Normal(self.init_std))
