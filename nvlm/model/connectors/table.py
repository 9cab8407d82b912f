"""The module of a connector, by the kind that `model.connector` names.

`Connector` of the file that is called like the kind is one of two: a plain torch module made of
the section and its sizes, of which every tensor-parallel rank has all and whose file an export
takes along (so that it imports torch and nothing of nvlm); or one of Megatron-core, whose layers
are split.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from nvlm.config.schema import ModelConfig
from nvlm.model.parts.layers import LayerParts
from nvlm.model.parts.whole import whole
from nvlm.sizes.parameters import other_connectors


def build_connector(
    model: ModelConfig,
    config: TransformerConfig,
    parts: LayerParts,
    groups: ProcessGroupCollection,
) -> nn.Module:
    """[n, p, c] -> [n, q, hidden size]

    Of several encoder layers the last one's; the others are below it, called as their rows are:
    `deepstack_0`, ..., or `level_0`, ...
    """
    first = _connector(model, config, parts, groups)
    for name in other_connectors(model):
        first.add_module(name, _connector(model, config, parts, groups))
    return first


def all_connectors(first: nn.Module, model: ModelConfig) -> list[nn.Module]:
    """What `build_connector` made: the first, and the others in their order."""
    return [first, *(getattr(first, name) for name in other_connectors(model))]


def _connector(
    model: ModelConfig,
    config: TransformerConfig,
    parts: LayerParts,
    groups: ProcessGroupCollection,
) -> nn.Module:
    connector, sizes = model.connector, model.connector_sizes
    module: Any = import_module(f"nvlm.model.connectors.{connector.kind}")
    if issubclass(module.Connector, MegatronModule):
        make: Any = module.Connector
        return make(connector, sizes, config, parts, groups)
    return whole(lambda: module.Connector(connector, sizes), config.params_dtype)
