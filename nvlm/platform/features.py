"""What of a run uses which kernels and settings of its device, decided here and printed at start.

    decide(config, machine, layers)     the whole list, for the start-up
    is_on(name, config, machine, layers)    one line of it, for who builds that part

Every rule is a pure function of the configuration and of a `Machine` (what was found), so it is
tested without the device. A rule gives the reason why its feature is off, or "" where it is on.
This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nvlm.config.schema import RunConfig
from nvlm.platform.machine import Machine


@dataclass(frozen=True)
class Situation:
    """What a rule may look at."""

    config: RunConfig
    machine: Machine
    layers: str  # `local` or `transformer_engine`, as `model.layer_implementation` was resolved


@dataclass(frozen=True)
class Feature:
    """A line of the list."""

    name: str
    value: str  # "on", "off", or which of several was chosen
    reason: str = ""  # why off, or why this one

    def __str__(self) -> str:
        return f"{self.name} {self.value}" + (f": {self.reason}" if self.reason else "")


Rule = Callable[[Situation], str]


def _pinned_memory(where: Situation) -> str:
    return "" if where.machine.has_gpu else "no GPU"


# One line a feature, in the order in which they are printed. Names are printed with spaces.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "pinned_memory": _pinned_memory,
    }
)


def is_on(name: str, config: RunConfig, machine: Machine, layers: str) -> bool:
    """Whether feature `name` of `RULES` is on."""
    return not RULES[name](Situation(config, machine, layers))


def decide(config: RunConfig, machine: Machine, layers: str) -> list[Feature]:
    """All features in the order of `RULES`."""
    situation = Situation(config, machine, layers)
    lines = []
    for name, rule in RULES.items():
        reason = rule(situation)
        lines.append(Feature(name.replace("_", " "), "off" if reason else "on", reason))
    return lines
