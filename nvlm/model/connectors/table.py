"""The module of a connector, by the kind that `model.connector` names."""

from __future__ import annotations

from importlib import import_module

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from nvlm.config.schema import ModelConfig
from nvlm.model.parts.layers import LayerParts


def build_connector(
    model: ModelConfig,
    config: TransformerConfig,
    parts: LayerParts,
    groups: ProcessGroupCollection,
) -> MegatronModule:
    """`Connector` of the module that is called like the kind: [n, p, c] -> [n, q, hidden size]."""
    module = import_module(f"nvlm.model.connectors.{model.connector.kind}")
    return module.Connector(model.connector, model.connector_sizes, config, parts, groups)
