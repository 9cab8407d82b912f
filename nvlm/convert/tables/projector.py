"""The projector as NVLM-D's `mlp1`: LayerNorm (0), linear (1), GELU (2, no weights), linear (3)."""

from __future__ import annotations

from nvlm.config.schema import ModelConfig
from nvlm.convert.rules import Rule, rules_of
from nvlm.sizes.parameters import PROJECTOR, component_parameters

_NAMES = {
    "norm.weight": ["mlp1.0.weight"],
    "norm.bias": ["mlp1.0.bias"],
    "mlp.linear_fc1.weight": ["mlp1.1.weight"],
    "mlp.linear_fc2.weight": ["mlp1.3.weight"],
}


def projector_rules(model: ModelConfig) -> list[Rule]:
    return rules_of(component_parameters(model, PROJECTOR), _NAMES, {})
