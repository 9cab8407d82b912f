"""From encoder patches to language-model embeddings: pixel shuffle, then a two-layer MLP.

Shape suffixes: n tiles, p patches of a tile, q = p / 4 tokens of a tile, c encoder channels.
"""

from __future__ import annotations

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nvlm.config.schema import NUM_SHUFFLED_PATCHES
from nvlm.model.parts.layers import LayerParts
from nvlm.model.parts.norms import LayerNorm


def pixel_shuffle(patches_npc: Tensor) -> Tensor:
    """Merge each 2 x 2 block of patches into one token of 4c channels (InternVL's version "v2").

    Tokens run row by row; a token's channels are its upper-left, upper-right, lower-left and
    lower-right patch. [n, p, c] -> [n, p / 4, 4c].
    """
    num_tiles, num_patches, channels = patches_npc.shape
    side = round(num_patches**0.5)
    assert side * side == num_patches and side % 2 == 0, f"{num_patches} patches are no even square"
    blocks = patches_npc.reshape(num_tiles, side // 2, 2, side // 2, 2, channels)
    return blocks.transpose(2, 3).reshape(
        num_tiles, num_patches // NUM_SHUFFLED_PATCHES, NUM_SHUFFLED_PATCHES * channels
    )


class VisionProjection(MegatronModule):
    """LayerNorm, linear, GELU (erf), linear; biases in the norm only (paper section 4.5)."""

    def __init__(
        self,
        input_size: int,
        config: TransformerConfig,
        parts: LayerParts,
        groups: ProcessGroupCollection,
    ):
        super().__init__(config)
        self.tp_group = groups.tp
        self.norm = LayerNorm(config, input_size, eps=config.layernorm_epsilon)
        self.mlp = MLP(
            config,
            MLPSubmodules(linear_fc1=parts.column_linear, linear_fc2=parts.row_linear),
            input_size=input_size,
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=groups.tp,
        )

    def forward(self, tokens_nqc: Tensor) -> Tensor:
        """[n, q, 4c] -> [n, q, language hidden size]."""
        projected, bias = self.mlp(self.norm(tokens_nqc))
        assert bias is None
        return projected
