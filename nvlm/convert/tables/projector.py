"""The connector as an export's `mlp1`, which is what NVLM-D's is called.

The MLP's layers are numbered as released: LayerNorm (0), linear (1), GELU (2, no weights), linear
(3). Those of other kinds are called as in their modules, which exports take along.
"""

from __future__ import annotations

from nvlm.config.schema import ModelConfig
from nvlm.convert.rules import Rule, rules_of
from nvlm.sizes.parameters import PROJECTOR, component_parameters

_OF_MLP = {
    "norm.weight": ["mlp1.0.weight"],
    "norm.bias": ["mlp1.0.bias"],
    "mlp.linear_fc1.weight": ["mlp1.1.weight"],
    "mlp.linear_fc2.weight": ["mlp1.3.weight"],
}


def projector_rules(model: ModelConfig) -> list[Rule]:
    rows = component_parameters(model, PROJECTOR)
    names = {
        key: [f"mlp1.{key}"] for key in (row.key.removeprefix(f"{PROJECTOR}.") for row in rows)
    }
    if model.connector.kind == "mlp":
        # Those of earlier encoder layers are in no folder, and keep their names.
        names |= _OF_MLP
    return rules_of(rows, names, {})
