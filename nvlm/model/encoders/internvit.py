"""InternViT: patches and a class token through transformer blocks with LayerScale.

References: the published InternViT-6B-448px-V1-5 (hidden 3200, 45 layers, 25 heads of 128; RMSNorm,
QK-norm, no bias on q, k and v) and InternViT-300M-448px (hidden 1024, 24 layers, 16 heads of 64;
LayerNorm, no QK-norm, that bias). Heads are stored padded with zero heads (the 6B's 25 as 32), so
no shape depends on the tensor-parallel size.

Shape suffixes: n tiles, p patches of a tile, s = 1 + p tokens, c channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from torch import Tensor, nn

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.settings import IMAGENET_MEAN, IMAGENET_STD
from nvlm.megatron.qkv_bias import with_qkv_bias
from nvlm.megatron.recomputed_inputs import recomputable
from nvlm.megatron.residual_gradients import follow_gradient_mode
from nvlm.model.parts.layers import LayerParts, mlp_spec
from nvlm.model.parts.names import is_frozen
from nvlm.model.parts.norms import QueryKeyNorm, norm_class


class LayerScale(nn.Module):
    """residual + scale * (branch + bias), in the place of Megatron-core's bias-dropout-add."""

    def __init__(self, size: int, dtype: torch.dtype):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(size, dtype=dtype))

    def forward(self, training: bool, fused: bool) -> Callable:
        def add(
            branch_and_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float
        ) -> Tensor:
            assert dropout == 0, "InternViT is built without dropout"
            branch, bias = branch_and_bias
            return residual + self.scale * (branch if bias is None else branch + bias)

        return add


class _PatchEmbedding(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Draw nothing: weights are filled when the model is there."""


class PatchEmbedding(nn.Module):
    """Tiles to patch embeddings, a class token in front, learned positions added."""

    def __init__(self, vision: InternViTConfig, dtype: torch.dtype):
        super().__init__()
        width, num_tokens = vision.hidden_size, 1 + vision.num_patches
        self.patch_embedding = _PatchEmbedding(
            3, width, kernel_size=vision.patch_size, stride=vision.patch_size, dtype=dtype
        )
        self.class_embedding = nn.Parameter(torch.empty(1, 1, width, dtype=dtype))
        self.position_embedding = nn.Parameter(torch.empty(1, num_tokens, width, dtype=dtype))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [n, 3, size, size] normalised -> [n, s, c], patches row by row."""
        patches_npc = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        class_n1c = self.class_embedding.expand(pixels.shape[0], -1, -1)
        return torch.cat([class_n1c, patches_npc], dim=1) + self.position_embedding


class InternViT(MegatronModule):
    """The vision encoder. Without a final norm, and without its class token in the output."""

    def __init__(
        self,
        vision: InternViTConfig,
        config: TransformerConfig,
        parts: LayerParts,
        groups: ProcessGroupCollection,
    ):
        super().__init__(config)
        self.tp_group = groups.tp
        self.feature_layers = vision.feature_layer_numbers
        self.embeddings = PatchEmbedding(vision, config.params_dtype)
        spec = _layer_spec(vision, config, parts, groups)
        self.decoder = TransformerBlock(
            config,
            TransformerBlockSubmodules(layer_specs=[spec] * config.num_layers),
            post_layer_norm=False,
            pg_collection=groups,
        )
        follow_gradient_mode(self.decoder)

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles [n, 3, size, size], uint8 or normalised -> [n, p, c], patches row by row.

        With `feature_layers` c is so many times the encoder's width.
        """
        # A frozen encoder keeps no activations.
        with torch.no_grad() if is_frozen(self) else nullcontext():
            pixels = normalize_tiles(tiles) if tiles.dtype == torch.uint8 else tiles
            pixels = pixels.to(self.config.params_dtype)
            embedded_snc = self.embeddings(pixels).transpose(0, 1).contiguous()
            embedded_snc = recomputable(embedded_snc, self.decoder)
            if self.feature_layers:
                encoded_snc = torch.cat(self._hidden_states(embedded_snc), dim=-1)
            else:
                encoded_snc = self.decoder(embedded_snc, attention_mask=None)
            return encoded_snc[1:].transpose(0, 1)

    def _hidden_states(self, hidden_snc: Tensor) -> list[Tensor]:
        """Behind each of `feature_layers`, [s, n, c].

        Megatron-core's block gives the last layer's alone; its layers are called as it calls them,
        those that are recomputed one by one.
        """
        config, found = self.config, []
        is_recomputed = config.recompute_granularity == "full" and self.training
        num_recomputed = (config.recompute_num_layers or 0) if is_recomputed else 0
        for number, layer in enumerate(self.decoder.layers, start=1):
            run = functools.partial(_through, layer)
            if number <= num_recomputed:
                hidden_snc = tensor_parallel.checkpoint(run, False, hidden_snc)
            else:
                hidden_snc = run(hidden_snc)
            if number in self.feature_layers:
                found.append(hidden_snc)
        return found


def _through(layer: nn.Module, hidden_snc: Tensor) -> Tensor:
    hidden_snc, _ = layer(hidden_states=hidden_snc, attention_mask=None)
    return hidden_snc


def normalize_tiles(tiles: Tensor) -> Tensor:
    """uint8 RGB [n, 3, h, w] -> float32 with ImageNet's mean and deviation."""
    mean, deviation = _pixel_statistics(tiles.device)
    return (tiles.float() / 255 - mean) / deviation


@functools.cache
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation [1, 3, 1, 1], copied to the device once: the copy waits for it."""
    mean, deviation = (
        torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean.view(1, 3, 1, 1), deviation.view(1, 3, 1, 1)


def _layer_spec(
    vision: InternViTConfig,
    config: TransformerConfig,
    parts: LayerParts,
    groups: ProcessGroupCollection,
) -> ModuleSpec:
    norm: Any = norm_class(vision.normalization)
    query_key_norm: Any = IdentityOp
    if vision.qk_layernorm:
        query_key_norm = ModuleSpec(
            module=QueryKeyNorm,
            params={"num_real_heads": vision.num_attention_heads, "tensor_group": groups.tp},
        )
    layer_scale = ModuleSpec(
        module=LayerScale, params={"size": config.hidden_size, "dtype": config.params_dtype}
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.no_mask},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=with_qkv_bias(parts.column_linear, config.add_qkv_bias),
                    core_attention=parts.core_attention,
                    linear_proj=parts.row_linear,
                    q_layernorm=query_key_norm,
                    k_layernorm=query_key_norm,
                ),
            ),
            self_attn_bda=layer_scale,
            pre_mlp_layernorm=norm,
            mlp=mlp_spec(parts, config),
            mlp_bda=layer_scale,
        ),
    )
