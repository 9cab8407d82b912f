"""What other settings of the optimizer and the schedule do to a run that goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nvlm.config.schema import RunConfig
from nvlm.train.optim import build_scheduler, learning_rate


def rate_changes(saved: RunConfig, config: RunConfig, step: int) -> list[str]:
    """Lines on what differs between the checkpoint's settings and this run's, resumed at `step`.

    Rates are the schedule's, before any module's own factor.
    """
    changed = [
        f"{key} {before} is now {now}"
        for key, before, now in _settings(saved, config)
        if before != now
    ]
    if not changed:
        return []
    next_step = step + 1
    rate, planned = _rate_at(config, next_step), _rate_at(saved, next_step)
    end, planned_end = _end(config), _end(saved)
    lines = [f"settings: {', '.join(changed)}"]
    if (rate, end) == (planned, planned_end):
        lines.append("learning rate: as planned before")
    else:
        lines.append(
            f"learning rate: {rate:.3g} at step {next_step}, which was to have {planned:.3g}; it "
            f"ends with {end}, and was to end with {planned_end}"
        )
    return lines


def _settings(saved: RunConfig, config: RunConfig) -> list[tuple[str, object, object]]:
    pairs: list[tuple[str, object, object]] = [
        ("train.steps", saved.train.steps, config.train.steps)
    ]
    for name in ("optimizer", "schedule"):
        theirs, ours = (getattr(some.train, name).model_dump() for some in (saved, config))
        pairs += [(f"train.{name}.{key}", theirs[key], ours[key]) for key in ours]
    return pairs


def _end(config: RunConfig) -> str:
    """Where the rate stops changing."""
    schedule = config.train.schedule
    last = max(schedule.decay_steps or config.train.steps, schedule.warmup_steps + 1)
    last = min(last, config.train.steps)
    return f"{_rate_at(config, last):.3g} at step {last}"


def _rate_at(config: RunConfig, step: int) -> float:
    """The rate of `step`, by Megatron-core's own schedule."""
    nothing: Any = SimpleNamespace(param_groups=[])  # an optimizer without parameters
    scheduler = build_scheduler(nothing, config)
    scheduler.step(increment=step)
    return learning_rate(scheduler, config)
