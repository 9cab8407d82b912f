"""InternViT, in its variants of norms and biases."""

from __future__ import annotations

from typing import Literal

from nvlm.config.section import Section
from nvlm.config.values import Count, NumLayers, Positive, Switch


class VisionConfig(Section):
    """InternViT. configs/model has the 6B-448px-V1-5 (in nvlm_d_72b.yaml) and the 300M-448px."""

    num_layers: NumLayers
    """Transformer layers."""
    hidden_size: Count
    """Width of a patch's hidden state."""
    ffn_hidden_size: Count
    """Width inside the MLP of a layer."""
    num_attention_heads: Count
    """Attention heads, each `hidden_size / num_attention_heads` wide."""
    num_stored_attention_heads: Count
    """Heads that checkpoints store: the real ones and then zero ones. Constant, so that the model's
    shape never depends on the tensor-parallel size; the released NVLM-D stores 25 as 32."""
    image_size: Count = 448
    """Width and height of a tile, in pixels."""
    patch_size: Count = 14
    """Width and height of a patch, in pixels."""
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    """Norm of the layers. The 6B has RMSNorm, norms of queries and keys over all heads together,
    and no bias on q, k and v; the 300M has LayerNorm, no such norms, and the bias."""
    qk_layernorm: Switch = True
    """Norms of queries and keys, over all heads together."""
    qkv_bias: Switch = False
    """Bias of the query, key and value projections."""
    norm_epsilon: Positive = 1e-6
    """Added to the variance in every norm."""
    layer_scale_init: Positive = 0.1
    """First value of the factors on each layer's two outputs (layer scale)."""
    init_std: Positive = 0.02
    """Standard deviation of random first weights."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_patches(self) -> int:
        """Patches of a tile, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2
