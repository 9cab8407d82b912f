"""What can stand between encoder and decoder: `model.connector`, told apart by `kind`.

A connector is two files of one name and an entry in the table below: here its settings, without
torch, with what follows from them (tokens of a tile, parameters); in `nvlm/model/connectors` its
modules. docs/extend.md adds one.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Tag

from nvlm.config.connectors.linear import LinearConfig
from nvlm.config.connectors.mlp import MLPConfig
from nvlm.config.connectors.sizes import ConnectorSizes as ConnectorSizes
from nvlm.config.section_kinds import kind_or

Connector = Annotated[
    Annotated[MLPConfig, Tag("mlp")] | Annotated[LinearConfig, Tag("linear")],
    kind_or("mlp"),
]
