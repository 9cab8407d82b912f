"""What a stage trains: freezing by name patterns, learning rates, and the table that says so."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch.distributed as dist
from torch import nn

from nvlm.config.schema import RunConfig
from nvlm.errors import ConfigError
from nvlm.parallel.groups import Parallel


@dataclass
class ModuleRow:
    """A line of the start-up table; counts are of the whole model, over all processes."""

    name: str
    num_parameters: int = 0
    num_trainable: int = 0
    lr_multiplier: float = 1.0


def freeze(model: nn.Module, config: RunConfig, parallel: Parallel) -> None:
    """Turn off gradients of the parameters that `stage.freeze` names.

    Raises:
        ConfigError: a pattern matches no parameter on any pipeline stage, or nothing is left.
    """
    matches = _match(model, config.stage.freeze, "stage.freeze", parallel)
    for name, parameter in model.named_parameters():
        if any(name in names for names in matches.values()):
            parameter.requires_grad_(False)
    trainable = sum(parameter.requires_grad for parameter in model.parameters())
    if sum(_gather(trainable, parallel)) == 0:
        raise ConfigError(f"stage.freeze {config.stage.freeze} leaves nothing to train")


def learning_rate_multipliers(
    model: nn.Module, config: RunConfig, parallel: Parallel
) -> dict[str, float]:
    """Parameter name -> factor on the learning rate; the last matching pattern wins.

    Raises:
        ConfigError: a pattern matches no parameter on any pipeline stage.
    """
    patterns = config.train.optimizer.lr_multipliers
    matches = _match(model, list(patterns), "train.optimizer.lr_multipliers", parallel)
    return {name: patterns[pattern] for pattern in patterns for name in matches[pattern]}


def module_table(
    model: nn.Module, multipliers: dict[str, float], parallel: Parallel
) -> list[ModuleRow]:
    """Parameters per part of the model, summed over tensor ranks and pipeline stages."""
    rows: dict[str, ModuleRow] = {}
    for name, parameter in model.named_parameters():
        part = _part_of(name)
        row = rows.setdefault(part, ModuleRow(part))
        copies = parallel.tensor_size if getattr(parameter, "tensor_model_parallel", False) else 1
        row.num_parameters += parameter.numel() * copies
        row.num_trainable += parameter.numel() * copies if parameter.requires_grad else 0
        row.lr_multiplier = multipliers.get(name, row.lr_multiplier)
    merged: dict[str, ModuleRow] = {}
    for stage in _gather(list(rows.values()), parallel):
        for row in stage:
            total = merged.setdefault(row.name, ModuleRow(row.name))
            total.num_parameters += row.num_parameters
            total.num_trainable += row.num_trainable
            total.lr_multiplier = row.lr_multiplier
    return list(merged.values())


def _part_of(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "language_model" else parts[0]


def _match(
    model: nn.Module, patterns: list[str], key: str, parallel: Parallel
) -> dict[str, set[str]]:
    names = [name for name, _ in model.named_parameters()]
    matches = {p: {name for name in names if fnmatchcase(name, p)} for p in patterns}
    found = [set(hits) for hits in _gather([p for p in patterns if matches[p]], parallel)]
    unmatched = [pattern for pattern in patterns if not any(pattern in hits for hits in found)]
    if unmatched:
        parts = sorted(set().union(*_gather({_part_of(name) for name in names}, parallel)))
        raise ConfigError(
            f"{key}: {', '.join(map(repr, unmatched))} matches no parameter; "
            f"the model has {', '.join(part + '.*' for part in parts)}"
        )
    return matches


def _gather(value, parallel: Parallel) -> list:
    """`value` of every pipeline stage, the same list on all of them."""
    gathered = [None] * parallel.pipeline_size
    dist.all_gather_object(gathered, value, group=parallel.groups.pp)
    return gathered
