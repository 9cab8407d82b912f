"""From encoder patches to language-model embeddings: pixel shuffle, then one linear layer.

Shape suffixes: n tiles, p patches of a tile, q tokens of a tile, c encoder channels.
"""

from __future__ import annotations

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nvlm.config.connectors import ConnectorSizes
from nvlm.config.connectors.linear import LinearConfig
from nvlm.model.parts.layers import LayerParts
from nvlm.model.parts.norms import LayerNorm
from nvlm.model.parts.pixel_shuffle import pixel_shuffle


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Draw nothing: weights are filled when the model is there."""


class Connector(MegatronModule):
    """Pixel shuffle, LayerNorm and a linear without a bias, whole on every tensor-parallel rank:
    all of them have the same tiles, and so the same gradients."""

    def __init__(
        self,
        connector: LinearConfig,
        sizes: ConnectorSizes,
        config: TransformerConfig,
        parts: LayerParts,
        groups: ProcessGroupCollection,
    ):
        super().__init__(config)
        self.tp_group = groups.tp
        self.pixel_shuffle = connector.pixel_shuffle
        input_size = connector.token_size(sizes)
        self.norm = LayerNorm(config, input_size, eps=connector.norm_epsilon)
        self.linear = _Linear(input_size, sizes.hidden_size, bias=False, dtype=config.params_dtype)

    def forward(self, patches_npc: Tensor) -> Tensor:
        """[n, p, c] -> [n, q, language hidden size]."""
        return self.linear(self.norm(pixel_shuffle(patches_npc, self.pixel_shuffle)))
