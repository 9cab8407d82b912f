"""A resumed optimizer with the settings of this run.

What is wrong: Megatron-core 0.16.1 takes all of a parameter group's settings from the checkpoint:
learning rates, decay and betas of a configuration that was changed since would not count.
What is done: moments and step counts are restored, the rest stays as this run's configuration says.
When the pin moves: which keys of a group belong to the state; `step` alone today.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.core.optimizer import MegatronOptimizer


def load_optimizer_state(optimizer: MegatronOptimizer, state: dict) -> None:
    """Restore what `optimizer` counted and accumulated; no setting."""
    restored = ("params", "step")
    own = [
        {key: value for key, value in group.items() if key not in restored}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
