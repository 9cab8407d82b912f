"""From encoder patches to language-model embeddings: pixel shuffle, then a two-layer MLP.

Shape suffixes: n tiles, p patches of a tile, q tokens of a tile, c encoder channels.
"""

from __future__ import annotations

import copy

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nvlm.config.connectors import ConnectorSizes
from nvlm.config.connectors.mlp import MLPConfig
from nvlm.model.parts.layers import LayerParts
from nvlm.model.parts.norms import LayerNorm
from nvlm.model.parts.pixel_shuffle import pixel_shuffle


class Connector(MegatronModule):
    """Pixel shuffle, LayerNorm, linear, GELU (erf), linear; biases in the norm only (paper section
    4.5)."""

    def __init__(
        self,
        connector: MLPConfig,
        sizes: ConnectorSizes,
        config: TransformerConfig,
        parts: LayerParts,
        groups: ProcessGroupCollection,
    ):
        config = copy.copy(config)
        config.ffn_hidden_size = connector.ffn_hidden_size
        super().__init__(config)
        self.tp_group = groups.tp
        self.pixel_shuffle = connector.pixel_shuffle
        input_size = connector.token_size(sizes)
        self.norm = LayerNorm(config, input_size, eps=connector.norm_epsilon)
        self.mlp = MLP(
            config,
            MLPSubmodules(linear_fc1=parts.column_linear, linear_fc2=parts.row_linear),
            input_size=input_size,
            ffn_hidden_size=connector.ffn_hidden_size,
            tp_group=groups.tp,
        )

    def forward(self, patches_npc: Tensor) -> Tensor:
        """[n, p, c] -> [n, q, language hidden size]."""
        projected, bias = self.mlp(self.norm(pixel_shuffle(patches_npc, self.pixel_shuffle)))
        assert bias is None
        return projected
