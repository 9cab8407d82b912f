"""timm's plain ViTs in torch alone, with timm's names of parameters.

timm's `VisionTransformer` (CLIP, SigLIP, DINOv2, AIMv2 and others) as far as the last layer whose
hidden states are wanted: neither the last norm nor what pools and classifies. An export takes this
file along.

Shape suffixes: n tiles, p patches of a tile, s tokens of a tile (class token, registers, patches),
c channels, a attention heads, d channels of a head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional


def quick_gelu(values: Tensor) -> Tensor:
    """The approximation that OpenAI's CLIP was trained with."""
    return values * torch.sigmoid(1.702 * values)


ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": functional.silu,
}


def normalize_pixels(tiles: Tensor, mean, std) -> Tensor:
    """RGB [n, 3, h, w] of uint8 -> float32 with mean 0 and deviation 1 of what was trained on.

    Numbers, not tensors: a copy to the device would wait for it.
    """
    channels = zip(tiles.unbind(1), mean, std)
    return torch.stack([(one.float() / 255 - m) / s for one, m, s in channels], dim=1)


class PatchEmbedding(nn.Module):
    def __init__(self, settings, norm):
        super().__init__()
        size = settings.patch_size
        self.proj = nn.Conv2d(3, settings.hidden_size, size, stride=size, bias=settings.patch_bias)
        self.norm = norm() if settings.patch_norm else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """[n, 3, size, size] -> [n, p, c], patches row by row."""
        return self.norm(self.proj(pixels).flatten(2).transpose(1, 2))


class Attention(nn.Module):
    def __init__(self, settings):
        super().__init__()
        width = settings.hidden_size
        self.num_heads = settings.num_attention_heads
        self.qkv = nn.Linear(width, 3 * width, bias=settings.qkv_bias)
        self.proj = nn.Linear(width, width, bias=settings.linear_bias)

    def forward(self, hidden_nsc: Tensor) -> Tensor:
        queries_nasd, keys_nasd, values_nasd = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(hidden_nsc).chunk(3, dim=-1)
        )
        attended_nasd = functional.scaled_dot_product_attention(
            queries_nasd, keys_nasd, values_nasd
        )
        return self.proj(attended_nasd.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, settings):
        super().__init__()
        width, inner, bias = settings.hidden_size, settings.ffn_hidden_size, settings.linear_bias
        self.kind, self.activation = settings.mlp, ACTIVATIONS[settings.activation]
        if self.kind == "swiglu":
            self.fc1_g = nn.Linear(width, inner, bias=bias)
            self.fc1_x = nn.Linear(width, inner, bias=bias)
        else:
            num_parts = 2 if self.kind == "packed_swiglu" else 1
            self.fc1 = nn.Linear(width, num_parts * inner, bias=bias)
        self.fc2 = nn.Linear(inner, width, bias=bias)

    def forward(self, hidden_nsc: Tensor) -> Tensor:
        if self.kind == "swiglu":
            return self.fc2(self.activation(self.fc1_g(hidden_nsc)) * self.fc1_x(hidden_nsc))
        inner = self.fc1(hidden_nsc)
        if self.kind == "packed_swiglu":
            gate, up = inner.chunk(2, dim=-1)
            return self.fc2(self.activation(gate) * up)
        return self.fc2(self.activation(inner))


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, hidden_nsc: Tensor) -> Tensor:
        return hidden_nsc * self.gamma


class Block(nn.Module):
    def __init__(self, settings, norm):
        super().__init__()
        scale = partial(LayerScale, settings.hidden_size) if settings.layer_scale else nn.Identity
        self.norm1, self.attn, self.ls1 = norm(), Attention(settings), scale()
        self.norm2, self.mlp, self.ls2 = norm(), MLP(settings), scale()

    def forward(self, hidden_nsc: Tensor) -> Tensor:
        hidden_nsc = hidden_nsc + self.ls1(self.attn(self.norm1(hidden_nsc)))
        return hidden_nsc + self.ls2(self.mlp(self.norm2(hidden_nsc)))


class Encoder(nn.Module):
    """The first `num_layers` layers of a ViT."""

    def __init__(self, settings):
        super().__init__()
        width, model_norm = settings.hidden_size, getattr(nn, settings.norm)
        norm = partial(model_norm, width, eps=settings.norm_epsilon)
        side = settings.image_size // settings.patch_size
        # Counted from 1; exports that say none have the last one's.
        self.feature_layers = getattr(settings, "feature_layers", None) or [settings.num_layers]
        num_prefix = settings.class_token + settings.num_registers
        self.statistics = tuple(settings.pixel_mean), tuple(settings.pixel_std)
        self.num_prefix, self.positions = num_prefix, settings.positions
        self.cls_token = self.reg_token = self.pos_embed = None
        if settings.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if settings.num_registers:
            self.reg_token = nn.Parameter(torch.empty(1, settings.num_registers, width))
        if settings.positions != "none":
            length = side**2 + (num_prefix if settings.positions == "all" else 0)
            self.pos_embed = nn.Parameter(torch.empty(1, length, width))
        self.patch_embed = PatchEmbedding(settings, norm)
        self.norm_pre = norm() if settings.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*(Block(settings, norm) for _ in range(settings.num_layers)))

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles [n, 3, size, size], uint8 or normalised -> patches' hidden states [n, p, c].

        Those of several layers side by side: c is then so many times the encoder's width.
        """
        if tiles.dtype == torch.uint8:
            tiles = normalize_pixels(tiles, *self.statistics)
        hidden_nsc = self._embed(tiles.to(self.patch_embed.proj.weight.dtype))
        hidden_nsc, features = self.norm_pre(hidden_nsc), []
        for number, block in enumerate(self.blocks, start=1):
            hidden_nsc = block(hidden_nsc)
            if number in self.feature_layers:
                features.append(hidden_nsc[:, self.num_prefix :])
        return features[0] if len(features) == 1 else torch.cat(features, dim=-1)

    def _embed(self, pixels: Tensor) -> Tensor:
        hidden = self.patch_embed(pixels)
        if self.positions == "patches":
            hidden = hidden + self.pos_embed
        prefix = [one for one in (self.cls_token, self.reg_token) if one is not None]
        expanded = [one.expand(len(pixels), -1, -1) for one in prefix]
        hidden = torch.cat([*expanded, hidden], dim=1) if expanded else hidden
        if self.pos_embed is not None and self.positions == "all":
            hidden = hidden + self.pos_embed
        return hidden
