"""Honeybee's C-Abstractor: convolutions around adaptive average pooling."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import Literal

from nvlm.config.connectors.sizes import ConnectorSizes, KeptNumbers, Product
from nvlm.config.section import Section
from nvlm.config.values import Count, Positive
from nvlm.rows import ONES, ZEROS, Normal, Parameter


class CAbstractorConfig(Section):
    """Honeybee's (Cha et al. 2023, arXiv 2312.06742), as MM1 keeps it: learned positions, blocks of
    a RegNet with LayerNorms and SiLU, adaptive average pooling to any square of tokens, as many
    blocks again, and two linears. The same on every tensor-parallel rank."""

    kind: Literal["c_abstractor"] = "c_abstractor"
    """Which connector."""
    num_queries: Count = 144
    """Tokens of a tile, a square number."""
    hidden_size: Count = 1024
    """Channels of the convolutions."""
    depth: Count = 3
    """Blocks before the pooling, and as many after it."""
    init_std: Positive = 0.02
    """Standard deviation of random first weights."""

    def num_tokens(self, sizes: ConnectorSizes) -> int:
        return self.num_queries

    def problems(self, sizes: ConnectorSizes) -> Iterator[str]:
        side = isqrt(self.num_queries)
        if side**2 != self.num_queries:
            yield f"model.connector.num_queries {self.num_queries} is not a square number"
        elif side > sizes.side:
            yield (
                f"model.connector.num_queries {self.num_queries} are more than the "
                f"{sizes.num_patches} patches that model.vision makes of a tile"
            )

    def split_sizes(self) -> dict[str, int]:
        return {}

    def products(self, sizes: ConnectorSizes) -> list[Product]:
        """Those of the pooling left out: two by matrices of a row for each token."""
        hidden, queries = self.hidden_size, self.num_queries
        found = []
        for num_places, channels in self._blocks(sizes):
            found += [
                Product(num_places, channels, hidden),
                Product(num_places, 9, hidden),
                Product(1, hidden, _squeezed(channels)),
                Product(1, _squeezed(channels), hidden),
                Product(num_places, hidden, hidden),
            ]
            if channels != hidden:
                found.append(Product(num_places, channels, hidden))
        return [
            *found,
            Product(queries, hidden, sizes.hidden_size),
            Product(queries, sizes.hidden_size, sizes.hidden_size),
        ]

    def kept_numbers(self, sizes: ConnectorSizes, tensor_size: int) -> KeptNumbers:
        """Of each block, in and out of each convolution, norm, activation and the gate."""
        in_precision = in_fp32 = 0
        for num_places, channels in self._blocks(sizes):
            in_precision += num_places * (channels + 11 * self.hidden_size)
            in_fp32 += 6 * num_places
        readout = self.num_queries * (self.hidden_size + 2 * sizes.hidden_size)
        return KeptNumbers(in_precision + readout, in_fp32)

    def parameters(self, sizes: ConnectorSizes) -> Iterator[Parameter]:
        normal, hidden, decoder = Normal(self.init_std), self.hidden_size, sizes.hidden_size
        yield Parameter("positions", (sizes.num_patches, sizes.channels), normal)
        for name, first in (("before", sizes.channels), ("after", hidden)):
            for block in range(self.depth):
                key = f"{name}.b{block + 1}"
                yield from self._block(key, first if block == 0 else hidden)
        yield Parameter("readout.0.weight", (decoder, hidden), normal)
        yield Parameter("readout.0.bias", (decoder,), ZEROS)
        yield Parameter("readout.2.weight", (decoder, decoder), normal)
        yield Parameter("readout.2.bias", (decoder,), ZEROS)

    def _blocks(self, sizes: ConnectorSizes) -> Iterator[tuple[int, int]]:
        """Places and input channels of each block."""
        for num_places, first in (
            (sizes.num_patches, sizes.channels),
            (self.num_queries, self.hidden_size),
        ):
            for block in range(self.depth):
                yield num_places, first if block == 0 else self.hidden_size

    def _block(self, key: str, channels: int) -> Iterator[Parameter]:
        hidden, squeezed = self.hidden_size, _squeezed(channels)
        yield from self._convolution(f"{key}.conv1", (hidden, channels, 1, 1))
        yield from self._convolution(f"{key}.conv2", (hidden, 1, 3, 3))
        for name, shape in (("fc1", (squeezed, hidden)), ("fc2", (hidden, squeezed))):
            yield Parameter(f"{key}.se.{name}.weight", (*shape, 1, 1), Normal(self.init_std))
            yield Parameter(f"{key}.se.{name}.bias", shape[:1], ZEROS)
        yield from self._convolution(f"{key}.conv3", (hidden, hidden, 1, 1))
        if channels != hidden:
            yield from self._convolution(f"{key}.downsample", (hidden, channels, 1, 1))

    def _convolution(self, key: str, shape: tuple[int, ...]) -> Iterator[Parameter]:
        yield Parameter(f"{key}.conv.weight", shape, Normal(self.init_std))
        yield Parameter(f"{key}.bn.weight", shape[:1], ONES)
        yield Parameter(f"{key}.bn.bias", shape[:1], ZEROS)


def _squeezed(channels: int) -> int:
    """Width inside the gate of a block (squeeze and excitation, a quarter)."""
    return round(channels * 0.25)
