"""Parameter groups that a checkpoint can tell apart.

What is wrong: Megatron-core 0.16.1 recognises a parameter group of a checkpoint by its factors
(`lr_mult`, `wd_mult`), and an override of `max_lr` leaves its factor at 1: a resumed run with two
learning rates mixed them up.
What is done: whoever has another rate has the factor as well, which nothing else reads here.
When the pin moves: `param_group_identifier_keys` in megatron/core/optimizer/optimizer.py.
"""

from __future__ import annotations

from typing import Any


def rate_override(max_lr: float, min_lr: float, factor: float) -> dict[str, Any]:
    """Megatron-core's override for parameters whose rates are `factor` times the schedule's."""
    return {"max_lr": max_lr * factor, "min_lr": min_lr * factor, "lr_mult": factor}
