"""The module of an encoder, by the kind that `model.vision` names.

InternViT is one of Megatron-core, whose layers tensor-parallel ranks share. `Encoder` of any other
kind's file is a plain torch module made of `module_settings` of its section, of which every rank
has all; an export takes the file along. Encoders side by side are several of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.utils import sharded_state_dict_default
from torch import Tensor, nn

from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.encoders.settings import EncoderPart
from nvlm.config.encoders.side_by_side import SideBySideConfig
from nvlm.config.schema import RunConfig
from nvlm.model.encoders.internvit import InternViT
from nvlm.model.encoders.side_by_side import Input, read_side_by_side
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
    modules = [
        _build_one(config, part, layer_implementation, parts, groups)
        for part in vision.parts.values()
    ]
    if isinstance(vision, SideBySideConfig):
        return SideBySide(modules, vision.module_settings()["inputs"], groups)
    (module,) = modules
    return module


def _build_one(
    config: RunConfig,
    vision: EncoderPart,
    layer_implementation: str,
    parts: LayerParts,
    groups: ProcessGroupCollection,
) -> nn.Module:
    if isinstance(vision, InternViTConfig):
        transformer_config = vision_transformer_config(config, vision, layer_implementation)
        return InternViT(vision, transformer_config, parts, groups)
    module = import_module(f"nvlm.model.encoders.{vision.kind}")
    settings = SimpleNamespace(**vision.module_settings())
    return whole(lambda: module.Encoder(settings), parameter_dtype(config))


class SideBySide(nn.Module):
    """Encoders of Megatron-core and of plain torch, each named as in checkpoints."""

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        inputs: Sequence[Input],
        groups: ProcessGroupCollection,
    ):
        """`inputs`: what each encoder takes; see `read_side_by_side`."""
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.inputs = inputs
        self._tensor_group = groups.tp

    def forward(self, tiles: Tensor) -> Tensor:
        """tiles [n, 3, size, size] uint8 -> [n, p, sum of c]"""
        return read_side_by_side(tiles, [*self.encoders], self.inputs)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        """Each encoder's own: Megatron-core would take all of a plain module for replicated."""
        entries: dict = {}
        for number, encoder in enumerate(self.encoders):
            of_encoder = (f"{prefix}encoders.{number}.", sharded_offsets, metadata)
            entries |= sharded_state_dict_default(encoder, *of_encoder, tp_group=self._tensor_group)
        return entries
