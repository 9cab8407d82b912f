"""Parameter groups, rates and updates are those that the configuration says."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch
from helpers.rates import LR, PATTERNS, WEIGHT_DECAY, group_of, make_config

from nvlm.model.parts.names import named_parameters
from nvlm.train.freezing import freeze, group_rates, module_table, multipliers
from nvlm.train.optim import build_optimizer, build_scheduler, learning_rate, wrap_data_parallel


def test_parameter_groups_and_one_update_equal_torch_adamw(model, parallel, measure):
    config = make_config(*PATTERNS, "train.optimizer.clip_grad=1e9")
    factors = multipliers([model], config, parallel)
    chunks = wrap_data_parallel([model], parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)
    scheduler.step(increment=1)
    schedule = learning_rate(scheduler, config) / LR

    wanted, before = {}, {}
    for name, parameter in named_parameters([model]):
        lr = 0.1 if name.endswith(".linear_fc2.weight") else 1.0
        if name.startswith("vision_projection.") and lr == 1.0:
            lr = 0.5
        decay = 1.0
        for pattern, factor in config.train.optimizer.weight_decay_multipliers.items():
            decay = factor if fnmatchcase(name, pattern) else decay
        if parameter.ndim == 1:
            decay = 0.0  # norms, biases, layer scales
        wanted[name] = (LR * lr * schedule, WEIGHT_DECAY * decay)
        group = group_of(optimizer, parameter)
        assert (group["lr"], group["weight_decay"]) == pytest.approx(wanted[name]), name
        before[name] = parameter.detach().clone()
    assert len(set(wanted.values())) >= 6

    for chunk in chunks:
        chunk.zero_grad_buffer()
    torch.manual_seed(0)
    gradients = {}
    for name, parameter in named_parameters([model]):
        gradients[name] = torch.randn_like(parameter)
        parameter.main_grad.copy_(gradients[name])
    updated, _, _ = optimizer.step()
    assert updated

    settings = config.train.optimizer
    worst = 0.0
    for name, parameter in named_parameters([model]):
        truth = torch.nn.Parameter(before[name].clone())
        truth.grad = gradients[name]
        lr, decay = wanted[name]
        torch.optim.AdamW(
            [truth],
            lr=lr,
            weight_decay=decay,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
        ).step()
        assert not torch.equal(parameter, before[name])
        worst = max(worst, float((parameter - truth).detach().abs().max()))
    measure(
        "one update, learning rate and weight decay by pattern, largest difference",
        "torch.optim.AdamW",
        worst,
        3e-7,
    )


def test_rates_follow_the_schedule(model, parallel):
    config = make_config(*PATTERNS, "train.schedule.warmup_steps=4")
    chunks = wrap_data_parallel([model], parallel)
    factors = multipliers([model], config, parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)
    rates = []
    for _ in range(20):
        scheduler.step(increment=1)
        rates.append(learning_rate(scheduler, config))
        for group in optimizer.param_groups:
            # The floor is scaled with the peak, so the whole curve is; decay does not move.
            assert group["lr"] == pytest.approx(rates[-1] * group["max_lr"] / LR)
            assert group["weight_decay"] == pytest.approx(WEIGHT_DECAY * group["wd_mult"])
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[-1] == pytest.approx(1e-4)
    assert rates[3:] == sorted(rates[3:], reverse=True)


@pytest.mark.parametrize("frozen", [[], ["stage.freeze=[vision_projection.*]"]])
def test_rates_of_groups_are_those_of_the_optimizer(frozen, model, parallel):
    config = make_config(*PATTERNS, *frozen, "train.schedule.warmup_steps=4")
    freeze([model], config, parallel)
    factors = multipliers([model], config, parallel)
    rows = module_table([model], factors, parallel)
    chunks = wrap_data_parallel([model], parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)
    patterns = ["vision_projection.*", "*.linear_fc2.weight"]
    for _ in range(8):
        scheduler.step(increment=1)
        rate = learning_rate(scheduler, config)
        rates = group_rates(config, rows, rate)
        assert list(rates) == (patterns[1:] if frozen else patterns)
        in_use = {group["lr"] for group in optimizer.param_groups}
        assert sorted({rate, *rates.values()}) == pytest.approx(sorted(in_use))
