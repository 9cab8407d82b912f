"""What can stand between encoder and decoder: `model.connector`, told apart by `kind`.

A connector is two files of one name and a line in the table below: here its settings, without
torch, with what follows from them (tokens of a tile, parameters); in `nvlm/model/connectors` its
module, which an export takes along. docs/extend.md adds one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvlm.config.connectors.sizes import ConnectorSettings
from nvlm.config.connectors.sizes import ConnectorSizes as ConnectorSizes
from nvlm.config.section_kinds import section_of_kinds

# Kind, which is the module's name -> the class of its settings in there. The first is the default.
KINDS = {
    "mlp": "MLPConfig",
    "linear": "LinearConfig",
    "average_pooling": "AveragePoolingConfig",
    "attention_pooling": "AttentionPoolingConfig",
    "c_abstractor": "CAbstractorConfig",
}

if TYPE_CHECKING:
    Connector = ConnectorSettings
else:
    Connector = section_of_kinds(__name__, KINDS)
