"""Which kernels a run would use on a card, asked of what decides it where it runs."""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.plan.activations import layer_implementation
from nvlm.plan.hardware import Card
from nvlm.platform.features import RULES, Situation
from nvlm.platform.machine import with_image


def kernels_on(config: RunConfig, card: Card) -> frozenset[str]:
    """Names of `nvlm.platform.features.RULES` that are on with such a card and that image."""
    machine = with_image(card.name, card.capability)
    situation = Situation(config, machine, layer_implementation(config))
    return frozenset(name for name, rule in RULES.items() if not rule(situation))
