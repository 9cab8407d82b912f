"""From encoder patches to language-model embeddings: pixel shuffle, then one linear layer.

Shape suffixes: n tiles, p patches of a tile, q tokens of a tile, c encoder channels.
"""

from torch import Tensor, nn


class Connector(nn.Module):
    """Pixel shuffle, LayerNorm and a linear without a bias."""

    def __init__(self, settings, sizes):
        super().__init__()
        self.factor = settings.pixel_shuffle
        token_size = sizes.channels * self.factor**2
        self.norm = nn.LayerNorm(token_size, eps=settings.norm_epsilon)
        self.linear = nn.Linear(token_size, sizes.hidden_size, bias=False)

    def forward(self, patches_npc: Tensor) -> Tensor:
        """[n, p, c] -> [n, q, language hidden size]."""
        num_tiles, num_patches, channels = patches_npc.shape
        factor, side = self.factor, round(num_patches**0.5)
        # Blocks of patches row by row, as nvlm.model.parts.pixel_shuffle has them.
        blocks = patches_npc.reshape(
            num_tiles, side // factor, factor, side // factor, factor, channels
        )
        tokens = blocks.transpose(2, 3).reshape(num_tiles, -1, factor**2 * channels)
        return self.linear(self.norm(tokens))
