"""MM1's attention pooling: learned queries that attend to all patches of a tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from nvlm.config.connectors.sizes import ConnectorSizes, KeptNumbers, Product
from nvlm.config.section import Section
from nvlm.config.values import Count, Positive
from nvlm.rows import ONES, ZEROS, Normal, Parameter


class AttentionPoolingConfig(Section):
    """As many tokens as learned queries, each a mean of all patches of the tile weighted by
    attention (MM1, section 3.1, with 64 and 144): LayerNorm, keys and values, attention of several
    heads, a linear; no biases in the linears. The same on every tensor-parallel rank."""

    kind: Literal["attention_pooling"] = "attention_pooling"
    """Which connector."""
    num_queries: Count = 144
    """Tokens of a tile, each from a learned query."""
    num_attention_heads: Count = 16
    """Heads of the attention, which share the encoder's channels."""
    norm_epsilon: Positive = 1e-6
    """Added to the variance in the norm."""
    init_std: Positive = 0.014
    """Standard deviation of random first weights, and queries."""

    def num_tokens(self, sizes: ConnectorSizes) -> int:
        return self.num_queries

    def problems(self, sizes: ConnectorSizes) -> Iterator[str]:
        if sizes.channels % self.num_attention_heads:
            yield (
                f"model.connector.num_attention_heads {self.num_attention_heads} must divide the "
                f"{sizes.channels} channels of model.vision"
            )

    def split_sizes(self) -> dict[str, int]:
        return {}

    def products(self, sizes: ConnectorSizes) -> list[Product]:
        """The attention's two among them, all heads together."""
        channels, queries = sizes.channels, self.num_queries
        return [
            Product(sizes.num_patches, channels, 2 * channels),
            Product(queries, channels, sizes.num_patches),
            Product(queries, sizes.num_patches, channels),
            Product(queries, channels, sizes.hidden_size),
        ]

    def kept_numbers(self, sizes: ConnectorSizes, tensor_size: int) -> KeptNumbers:
        """Input and output of the norm, keys and values, and the result of the attention with its
        queries and a number of each head for each of them."""
        num_patches, queries = sizes.num_patches, self.num_queries
        in_precision = (4 * num_patches + 2 * queries) * sizes.channels
        return KeptNumbers(in_precision, 2 * num_patches + queries * self.num_attention_heads)

    def parameters(self, sizes: ConnectorSizes) -> Iterator[Parameter]:
        channels, normal = sizes.channels, Normal(self.init_std)
        yield Parameter("queries", (self.num_queries, channels), normal)
        yield Parameter("norm.weight", (channels,), ONES)
        yield Parameter("norm.bias", (channels,), ZEROS)
        yield Parameter("linear_kv.weight", (2 * channels, channels), normal)
        yield Parameter("linear.weight", (sizes.hidden_size, channels), normal)
