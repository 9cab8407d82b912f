"""What a stage trains: freezing and per-module rates by name patterns, and the table of them.

Patterns are matched with whole-model parameter names (`model/parts/names.py`): a pattern means the
same at every process layout. `chunks` are this pipeline stage's parts of the bare model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import nn

from nvlm.config.schema import RunConfig
from nvlm.model.parts.names import is_expert, named_parameters
from nvlm.parallel.groups import Parallel
from nvlm.rows import is_adapter
from nvlm.sizes.adapters import frozen_patterns
from nvlm.sizes.parameters import VISION, is_frozen
from nvlm.train import patterns as rules
from nvlm.train.patterns import LR_MULTIPLIERS, WEIGHT_DECAY_MULTIPLIERS, part_of


@dataclass(frozen=True)
class Multiplier:
    """A parameter's factors on `train.optimizer.lr` (and `min_lr`) and `weight_decay`."""

    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass
class ModuleRow:
    """A line of the start-up table; counts are of the whole model, over all processes.

    A part of the model has one row for each pair of factors that its parameters have.
    """

    name: str
    multiplier: Multiplier
    num_parameters: int = 0
    num_trainable: int = 0


def freeze(chunks: Sequence[nn.Module], config: RunConfig, parallel: Parallel) -> None:
    """Turn off gradients of what `stage.freeze` names, and of parts of the model with adapters.

    Raises:
        ConfigError: a pattern matches no parameter on any pipeline stage, or nothing is left.
    """
    parameters = list(named_parameters(chunks))
    own = [(name, parameter) for name, parameter in parameters if not is_adapter(name)]
    _match(own, config.stage.freeze, rules.FREEZE, parallel)
    frozen, num_trainable = frozen_patterns(config), 0
    for name, parameter in parameters:
        if is_frozen(name, frozen):
            parameter.requires_grad_(False)
        num_trainable += parameter.requires_grad
    if sum(_gather(num_trainable, parallel)) == 0:
        raise rules.nothing_left(config.stage.freeze)


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    return rules.has_weight_decay(name, tuple(parameter.shape))


def multipliers(
    chunks: Sequence[nn.Module], config: RunConfig, parallel: Parallel
) -> dict[str, Multiplier]:
    """Parameter name -> its factors; of each kind, the last matching pattern wins.

    The factor on weight decay of a vector stays 1 here; it has no weight decay to multiply.

    Raises:
        ConfigError: a pattern matches no parameter on any pipeline stage, or a pattern for weight
            decay matches nothing that has weight decay.
    """
    optimizer = config.train.optimizer
    parameters = list(named_parameters(chunks))
    lr = _match(parameters, optimizer.lr_multipliers, LR_MULTIPLIERS, parallel)
    decaying = [(name, p) for name, p in parameters if has_weight_decay(name, p)]
    # First against all parameters: "matches no parameter" is another mistake than "no matrix".
    _match(parameters, optimizer.weight_decay_multipliers, WEIGHT_DECAY_MULTIPLIERS, parallel)
    weight_decay = _match(
        decaying,
        optimizer.weight_decay_multipliers,
        WEIGHT_DECAY_MULTIPLIERS,
        parallel,
        kind=rules.WITH_WEIGHT_DECAY,
    )
    return {
        name: Multiplier(
            _last_match(name, lr, optimizer.lr_multipliers),
            _last_match(name, weight_decay, optimizer.weight_decay_multipliers),
        )
        for name, _ in parameters
    }


def module_table(
    chunks: Sequence[nn.Module], factors: Mapping[str, Multiplier], parallel: Parallel
) -> list[ModuleRow]:
    """Parameters per part of the model, summed over all processes that hold a part of it."""
    rows: dict[tuple[str, Multiplier], ModuleRow] = {}
    # A vector goes with the matrices of its part that have its learning rate.
    decay_of_part: dict[tuple[str, float], float] = {}
    parameters = sorted(named_parameters(chunks), key=lambda item: not has_weight_decay(*item))
    for name, parameter in parameters:
        if getattr(parameter, "shared", False):
            continue  # the last stage's copy of the embedding, counted on the first
        if name.startswith(f"{VISION}.") and not parallel.is_first_stage:
            continue  # later stages' copies of the encoder, likewise
        if parallel.expert_rank and not is_expert(parameter):
            continue  # each of those that share experts has a copy of all else
        part, factor = part_of(name), factors[name]
        if has_weight_decay(name, parameter):
            decay_of_part.setdefault((part, factor.lr), factor.weight_decay)
        else:
            factor = Multiplier(factor.lr, decay_of_part.get((part, factor.lr), 1.0))
        row = rows.setdefault((part, factor), ModuleRow(part, factor))
        is_split = getattr(parameter, "tensor_model_parallel", False) and not is_expert(parameter)
        copies = parallel.tensor_size if is_split else 1
        row.num_parameters += parameter.numel() * copies
        row.num_trainable += parameter.numel() * copies if parameter.requires_grad else 0
    merged: dict[tuple[str, Multiplier], ModuleRow] = {}
    for stage in _gather(list(rows.values()), parallel):
        for row in stage:
            key = (row.name, row.multiplier)
            total = merged.setdefault(key, ModuleRow(*key))
            total.num_parameters += row.num_parameters
            total.num_trainable += row.num_trainable
    by_part: dict[str, list[ModuleRow]] = {}
    for row in merged.values():
        by_part.setdefault(row.name, []).append(row)
    return [row for rows in by_part.values() for row in _with_frozen_in_one_row(rows)]


def group_rates(config: RunConfig, rows: Sequence[ModuleRow], rate: float) -> dict[str, float]:
    """Pattern of `lr_multipliers` -> learning rate, where something that trains has its factor.

    Args:
        rate: the schedule's. A factor scales all of the schedule.
    """
    factors = {row.multiplier.lr for row in rows if row.num_trainable}
    patterns = config.train.optimizer.lr_multipliers
    return {pattern: rate * factor for pattern, factor in patterns.items() if factor in factors}


def _with_frozen_in_one_row(rows: list[ModuleRow]) -> list[ModuleRow]:
    """Factors mean nothing where nothing trains: such rows of a part go into its first one."""
    trainable = [row for row in rows if row.num_trainable]
    kept = trainable or [ModuleRow(rows[0].name, Multiplier())]
    kept[0].num_parameters += sum(row.num_parameters for row in rows if not row.num_trainable)
    return kept


def _last_match(
    name: str, matches: Mapping[str, set[str]], factor_of: Mapping[str, float]
) -> float:
    found = [factor for pattern, factor in factor_of.items() if name in matches[pattern]]
    return found[-1] if found else 1.0


def _match(
    parameters: Sequence[tuple[str, nn.Parameter]],
    patterns: Sequence[str] | Mapping[str, float],
    key: str,
    parallel: Parallel,
    kind: str = "parameter",
) -> dict[str, set[str]]:
    names, fits = [name for name, _ in parameters], rules.matcher(key)
    matches = {p: {name for name in names if fits(name, p)} for p in patterns}
    found = [set(hits) for hits in _gather([p for p in patterns if matches[p]], parallel)]
    unmatched = [pattern for pattern in patterns if not any(pattern in hits for hits in found)]
    if unmatched:
        parts = set().union(*_gather({part_of(name) for name in names}, parallel))
        raise rules.no_match(key, unmatched, parts, kind)
    return matches


def _gather(value, parallel: Parallel) -> list:
    """`value` of every pipeline stage and share of the experts, the same list on all of them."""
    group = parallel.groups.tp_ep_pp
    gathered = [None] * group.size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered
