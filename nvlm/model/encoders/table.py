"""The module of an encoder, by the kind that `model.vision` names.

InternViT is one of Megatron-core, whose layers tensor-parallel ranks share. `Encoder` of any other
kind's file is a plain torch module made of `module_settings` of its section, of which every rank
has all; an export takes the file along.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.schema import RunConfig
from nvlm.model.encoders.internvit import InternViT
from nvlm.model.parts.layers import LayerParts
from nvlm.model.parts.transformer_config import parameter_dtype, vision_transformer_config
from nvlm.model.parts.whole import whole


def build_encoder(
    config: RunConfig,
    layer_implementation: str,
    parts: LayerParts,
    groups: ProcessGroupCollection,
) -> nn.Module:
    """tiles [n, 3, size, size] uint8 -> [n, p, c]"""
    vision = config.model.vision
    if isinstance(vision, InternViTConfig):
        transformer_config = vision_transformer_config(config, vision, layer_implementation)
        return InternViT(vision, transformer_config, parts, groups)
    module = import_module(f"nvlm.model.encoders.{vision.kind}")
    settings = SimpleNamespace(**vision.module_settings())
    return whole(lambda: module.Encoder(settings), parameter_dtype(config))
