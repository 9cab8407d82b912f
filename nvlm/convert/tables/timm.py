"""timm's ViTs: the names here are timm's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from nvlm.config.schema import ModelConfig
from nvlm.convert.rules import Layout, Rule, rules_of
from nvlm.rows import Shape
from nvlm.sizes.parameters import VISION, part_parameters

POSITIONS = "pos_embed"


def timm_rules(model: ModelConfig, prefix: str = "", part: str = "") -> list[Rule]:
    """`part`: of several encoders which one, as `model.vision.parts` has it."""
    rows, at = part_parameters(model, part), f"{part}." if part else ""
    keys = [row.key.removeprefix(f"{VISION}.") for row in rows]
    return rules_of(rows, {key: [prefix + key.removeprefix(at)] for key in keys}, {})


def with_interpolated_positions(rules: list[Rule], found: Shape, num_prefix: int) -> list[Rule]:
    """The rules for a folder whose learned positions are `found`, of another grid of patches.

    Args:
        num_prefix: positions in front of those of patches, which are taken as they are.
    """
    return [
        _interpolated(rule, found, num_prefix) if rule.key.endswith(f".{POSITIONS}") else rule
        for rule in rules
    ]


def is_another_grid(ours: Shape, found: Shape, num_prefix: int) -> bool:
    """Whether `found` are positions of a square of patches of another size."""
    fits = len(found) == 3 and (found[0], found[2]) == (ours[0], ours[2]) and found[1] != ours[1]
    num_patches = found[1] - num_prefix if fits else 0
    return num_patches > 0 and isqrt(num_patches) ** 2 == num_patches


def _interpolated(rule: Rule, found: Shape, num_prefix: int) -> Rule:
    (name,) = rule.sources
    join: Callable[[Sequence[Tensor]], Tensor] = partial(
        _joined, num_tokens=rule.shape[1], num_prefix=num_prefix
    )
    return Rule(rule.parameter, {name: found}, Layout(join, lambda tensor: [tensor]))


def _joined(tensors: Sequence[Tensor], num_tokens: int, num_prefix: int) -> Tensor:
    (positions,) = tensors
    return interpolate_positions(positions, num_tokens, num_prefix)


def interpolate_positions(positions: Tensor, num_tokens: int, num_prefix: int) -> Tensor:
    """[1, prefix + p, c] -> [1, num_tokens, c], the prefix as it is.

    Bicubic with antialiasing, in fp32: what timm's `resample_abs_pos_embed` does where weights are
    loaded for another image size.
    """
    prefix, patches_1pc = positions[:, :num_prefix], positions[:, num_prefix:]
    old, new = isqrt(patches_1pc.shape[1]), isqrt(num_tokens - num_prefix)
    map_1chw = patches_1pc.float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
    resized = functional.interpolate(map_1chw, (new, new), mode="bicubic", antialias=True)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)
