"""Why a rate of its own comes with a factor: plain overrides leave groups that look the same."""

from __future__ import annotations

from helpers import small_model
from helpers.optimizer_parts import with_optimizer

from nvlm.train import optim

MULTIPLIERS = 'train.optimizer.lr_multipliers={"vision_projection.*": 0.1}'


def loaded_rates(config, parallel) -> tuple[list[float], list[float]]:
    """Rates of an optimizer's groups, and those that they get from its own checkpoint."""
    _, optimizer = with_optimizer(config, parallel)
    (inner,) = optimizer.chained_optimizers
    groups = inner.optimizer.param_groups
    rates = [group["max_lr"] for group in groups]
    assert len(set(rates)) == 2
    found = inner._filter_and_reorder_param_groups(groups, [dict(group) for group in groups])
    return rates, [group["max_lr"] for group in found]


def test_groups_are_mixed_up_without_a_factor(parallel, monkeypatch):
    config = small_model.small_config(MULTIPLIERS)
    rates, loaded = loaded_rates(config, parallel)
    assert loaded == rates

    monkeypatch.setattr(
        optim,
        "rate_override",
        lambda max_lr, min_lr, factor: {"max_lr": max_lr * factor, "min_lr": min_lr * factor},
    )
    rates, loaded = loaded_rates(config, parallel)
    assert loaded != rates
