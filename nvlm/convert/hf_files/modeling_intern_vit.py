"""InternViT: the vision encoder of NVLM-D, for transformers.

Shape suffixes: n tiles, s tokens (class token and patches), h stored heads, d channels per head,
c channels.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_intern_vit import InternVisionConfig

# What this file implements; other values would be silently wrong.
_IMPLEMENTED = {
    "norm_type": ("rms_norm", "layer_norm"),
    "hidden_act": ("gelu",),
    "attention_dropout": (0.0,),
    "dropout": (0.0,),
    "drop_path_rate": (0.0,),
}


class InternRMSNorm(nn.Module):
    """RMSNorm in fp32, cast back, then scaled by the weight in the input's precision.

    The mean square is taken over the first `num_real_channels`; channels after them belong to heads
    of zeros, which would not change the sum but must not count in the mean.
    """

    def __init__(self, num_channels, epsilon, num_real_channels=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.epsilon = epsilon
        self.num_real_channels = num_real_channels or num_channels

    def forward(self, hidden):
        wide = hidden.float()
        mean_square = wide[..., : self.num_real_channels].square().mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(mean_square + self.epsilon)).to(hidden.dtype)


def block_norm(config):
    """The norm in front of a layer's attention and MLP."""
    if config.norm_type == "layer_norm":
        return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    return InternRMSNorm(config.hidden_size, config.layer_norm_eps)


class InternVisionEmbeddings(nn.Module):
    """Patches in row-major order behind a class token, plus learned positions."""

    def __init__(self, config):
        super().__init__()
        self.image_size = config.image_size
        num_patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
        )
        self.position_embedding = nn.Parameter(torch.empty(1, num_patches + 1, config.hidden_size))

    def forward(self, pixel_values):
        if pixel_values.dim() != 4 or pixel_values.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values must be [tiles, channels, {self.image_size}, {self.image_size}], "
                f"found {list(pixel_values.shape)}"
            )
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches_nsc = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        class_n1c = self.class_embedding.expand(patches_nsc.shape[0], 1, -1)
        return torch.cat([class_n1c, patches_nsc], dim=1) + self.position_embedding


class InternAttention(nn.Module):
    """Bidirectional attention; QK-norm, where there is one, is over all heads together."""

    def __init__(self, config):
        super().__init__()
        self.num_heads = config.num_stored_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_real_channels = config.hidden_size
        self.num_stored_channels = self.num_heads * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * self.num_stored_channels, bias=config.qkv_bias)
        self.qk_normalization = config.qk_normalization
        if self.qk_normalization:
            norm_sizes = (self.num_stored_channels, config.layer_norm_eps, self.num_real_channels)
            self.q_norm = InternRMSNorm(*norm_sizes)
            self.k_norm = InternRMSNorm(*norm_sizes)
        self.proj = nn.Linear(self.num_stored_channels, config.hidden_size)

    def forward(self, hidden_nsc):
        query, key, value = self.qkv(hidden_nsc).chunk(3, dim=-1)
        if self.qk_normalization:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (
            x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x in (query, key, value)
        )
        attended_nhsd = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended_nhsd.transpose(1, 2).flatten(2))

    def zero_dummy_rows(self, qkv):
        qkv.unflatten(0, (3, self.num_stored_channels))[:, self.num_real_channels :].zero_()

    def zero_dummy_columns(self, proj_weight):
        proj_weight[:, self.num_real_channels :].zero_()


class InternMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden):
        return self.fc2(F.gelu(self.fc1(hidden)))


class InternVisionEncoderLayer(nn.Module):
    """Pre-norm block; LayerScale multiplies each branch, not the residual."""

    def __init__(self, config):
        super().__init__()
        self.attn = InternAttention(config)
        self.mlp = InternMLP(config)
        self.norm1 = block_norm(config)
        self.norm2 = block_norm(config)
        self.ls1 = nn.Parameter(torch.empty(config.hidden_size))
        self.ls2 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden):
        hidden = hidden + self.ls1 * self.attn(self.norm1(hidden))
        return hidden + self.ls2 * self.mlp(self.norm2(hidden))


class InternVisionEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(
            InternVisionEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )

    def forward(self, hidden):
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class InternVisionModel(PreTrainedModel):
    """Tiles to embeddings: [n, 3, image_size, image_size] -> [n, patches + 1, hidden_size].

    There is no norm after the last layer. Entry 0 of each tile is the class token.
    """

    config_class = InternVisionConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _no_split_modules = ["InternVisionEncoderLayer"]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        for name, values in _IMPLEMENTED.items():
            if getattr(config, name) not in values:
                raise ValueError(
                    f"InternViT with {name} {getattr(config, name)!r} is not implemented here, "
                    f"only {' or '.join(map(repr, values))}"
                )
        self.embeddings = InternVisionEmbeddings(config)
        self.encoder = InternVisionEncoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.patch_embedding

    def patches(self, pixel_values):
        """[n, 3, image_size, image_size] -> features of the patches [n, p, c]."""
        if self.config.feature_layers is None:
            return self(pixel_values=pixel_values).last_hidden_state[:, 1:]
        states = [self.embeddings(pixel_values)]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        features = [states[layer][:, 1:] for layer in self.config.feature_layers]
        # Layers may be on several devices.
        return torch.cat([one.to(states[-1].device) for one in features], dim=-1)

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            _fill(module.weight, lambda weight: weight.normal_(0.0, std))
            if module.bias is not None:
                _fill(module.bias, torch.Tensor.zero_)
        elif isinstance(module, InternRMSNorm):
            _fill(module.weight, lambda weight: weight.fill_(1.0))
            _fill(module.weight, lambda weight: weight[module.num_real_channels :].zero_())
        elif isinstance(module, nn.LayerNorm):
            _fill(module.weight, lambda weight: weight.fill_(1.0))
            _fill(module.bias, torch.Tensor.zero_)
        elif isinstance(module, InternVisionEmbeddings):
            _fill(module.class_embedding, lambda weight: weight.normal_(0.0, std))
            _fill(module.position_embedding, lambda weight: weight.normal_(0.0, std))
        elif isinstance(module, InternVisionEncoderLayer):
            _fill(module.ls1, lambda weight: weight.fill_(self.config.initializer_factor))
            _fill(module.ls2, lambda weight: weight.fill_(self.config.initializer_factor))
            # Submodules come first, so this overwrites the random values of the stored zero heads.
            _fill(module.attn.qkv.weight, module.attn.zero_dummy_rows)
            _fill(module.attn.proj.weight, module.attn.zero_dummy_columns)

    def forward(self, pixel_values, return_dict=None, **kwargs):
        hidden_nsc = self.encoder(self.embeddings(pixel_values))
        if return_dict is False:
            return hidden_nsc, hidden_nsc[:, 0]
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_nsc, pooler_output=hidden_nsc[:, 0]
        )


def _fill(parameter, how):
    """Initialise a parameter unless it came from a checkpoint (transformers marks those)."""
    if not getattr(parameter, "_is_hf_initialized", False):
        how(parameter.data)
