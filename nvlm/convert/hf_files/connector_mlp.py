"""NVLM-D's projector: pixel shuffle, LayerNorm, linear, GELU, linear.

Shape suffixes: n tiles, p patches of a tile, q tokens of a tile, c channels of the encoder.
"""

from torch import nn


class Connector(nn.Sequential):
    """No biases in the linears."""

    def __init__(self, settings, sizes):
        token_size = sizes.channels * settings.pixel_shuffle**2
        super().__init__(
            nn.LayerNorm(token_size, eps=settings.norm_epsilon),
            nn.Linear(token_size, settings.ffn_hidden_size, bias=False),
            nn.GELU(),
            nn.Linear(settings.ffn_hidden_size, sizes.hidden_size, bias=False),
        )
        self.factor = settings.pixel_shuffle

    def forward(self, patches_npc):
        """[n, p, c] -> [n, q, width of the language model]."""
        return super().forward(pixel_shuffle(patches_npc, self.factor))


def pixel_shuffle(patches_npc, factor=2):
    """Merge factor x factor neighbouring patches: [n, p, c] -> [n, p / f^2, f^2 c] (version 2).

    Tokens row by row; channels of 2 x 2: upper left, upper right, lower left, lower right.
    """
    num_tiles, num_patches, channels = patches_npc.shape
    side = round(num_patches**0.5)
    blocks = patches_npc.reshape(
        num_tiles, side // factor, factor, side // factor, factor, channels
    )
    return blocks.transpose(2, 3).reshape(num_tiles, num_patches // factor**2, -1)
