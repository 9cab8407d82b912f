"""From encoder patches to language-model embeddings: means of blocks of patches, then a linear.

Shape suffixes: n tiles, p patches of a tile, q tokens of a tile, c encoder channels.
"""

from torch import Tensor, nn
from torch.nn import functional


class Connector(nn.Module):
    """Average pooling, LayerNorm and a linear without a bias."""

    def __init__(self, settings, sizes):
        super().__init__()
        self.pool_size = settings.pool_size
        self.norm = nn.LayerNorm(sizes.channels, eps=settings.norm_epsilon)
        self.linear = nn.Linear(sizes.channels, sizes.hidden_size, bias=False)

    def forward(self, patches_npc: Tensor) -> Tensor:
        """[n, p, c] -> [n, q, language hidden size]."""
        side = round(patches_npc.shape[1] ** 0.5)
        map_nchw = patches_npc.transpose(1, 2).unflatten(2, (side, side))
        tokens_nqc = functional.avg_pool2d(map_nchw, self.pool_size).flatten(2).transpose(1, 2)
        return self.linear(self.norm(tokens_nqc))
