"""From encoder patches to language-model embeddings: learned queries that attend to all patches.

Shape suffixes: n tiles, p patches of a tile, q queries, c encoder channels, a attention heads,
d channels of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Connector(nn.Module):
    """LayerNorm, attention of learned queries to the patches, and a linear."""

    def __init__(self, settings, sizes):
        super().__init__()
        channels = sizes.channels
        self.num_heads = settings.num_attention_heads
        # Not projected: they are learned where projected queries are.
        self.queries = nn.Parameter(torch.empty(settings.num_queries, channels))
        self.norm = nn.LayerNorm(channels, eps=settings.norm_epsilon)
        self.linear_kv = nn.Linear(channels, 2 * channels, bias=False)
        self.linear = nn.Linear(channels, sizes.hidden_size, bias=False)

    def forward(self, patches_npc: Tensor) -> Tensor:
        """[n, p, c] -> [n, q, language hidden size]."""
        keys_npc, values_npc = self.linear_kv(self.norm(patches_npc)).chunk(2, dim=-1)
        queries_nqc = self.queries.expand(len(patches_npc), -1, -1)
        queries_naqd, keys_napd, values_napd = (
            tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tensor in (queries_nqc, keys_npc, values_npc)
        )
        attended_naqd = functional.scaled_dot_product_attention(
            queries_naqd, keys_napd, values_napd
        )
        return self.linear(attended_naqd.transpose(1, 2).flatten(2))
