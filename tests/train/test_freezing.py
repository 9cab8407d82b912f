"""Freezing, learning rates and weight decay by name pattern, on the real model and optimizer."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch

from nvlm.config import load_config
from nvlm.errors import ConfigError
from nvlm.model.parts.names import named_parameters
from nvlm.train.freezing import Multiplier, freeze, module_table, multipliers
from nvlm.train.optim import build_optimizer, build_scheduler, learning_rate, wrap_data_parallel

LR, WEIGHT_DECAY = 1e-3, 0.1
PATTERNS = (
    'train.optimizer.lr_multipliers={"vision_projection.*": 0.5, "*.linear_fc2.weight": 0.1}',
    "train.optimizer.weight_decay_multipliers="
    '{"*.linear_fc2.*": 3.0, "language_model.embedding.*": 0.0, "language_model.decoder.*": 0.5}',
    f"train.optimizer.lr={LR}",
    "train.optimizer.min_lr=1e-4",
    f"train.optimizer.weight_decay={WEIGHT_DECAY}",
    "train.steps=20",
)


def make_config(*overrides: str):
    sizes = ["model.vision.num_layers=1", "model.language.num_layers=1", "train.precision=fp32"]
    return load_config("configs/run/tiny/sft.yaml", [*sizes, "stage.freeze=[]", *overrides])


@pytest.fixture
def model(parallel):
    from nvlm.model.nvlm_d import build_model
    from nvlm.model.parts.initialize import initialize_weights

    model = build_model(make_config(), parallel)
    initialize_weights(model, make_config())
    return model


def group_of(optimizer, parameter) -> dict:
    """The parameter group that Megatron-core's distributed optimizer put `parameter` into."""
    inner = getattr(optimizer, "chained_optimizers", [optimizer])[0]
    index, _ = inner.model_param_group_index_map[parameter]
    return optimizer.param_groups[index]


def test_freeze_leaves_the_rest_trainable(model, parallel):
    config = make_config("stage.freeze=[vision_model.*,'*.word_embeddings.*']")
    freeze([model], config, parallel)
    for name, parameter in model.named_parameters():
        frozen = name.startswith("vision_model.") or "word_embeddings" in name
        assert parameter.requires_grad is not frozen, name
    table = module_table([model], multipliers([model], config, parallel), parallel)
    rows = {row.name: row for row in table}
    assert len(rows) == len(table)
    assert rows["vision_model"].num_trainable == rows["language_model.embedding"].num_trainable == 0
    assert rows["vision_projection"].num_trainable == rows["vision_projection"].num_parameters
    assert sum(row.num_parameters for row in table) == sum(p.numel() for p in model.parameters())


def test_nothing_left_to_train(model, parallel):
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze([model], make_config("stage.freeze=['*']"), parallel)


@pytest.mark.parametrize(
    "override, message",
    [
        (
            'train.optimizer.lr_multipliers={"vision_tower.*": 0.1}',
            r"lr_multipliers: 'vision_tower\.\*' matches no parameter; the model has "
            r"language_model\.decoder\.\*, .*vision_projection\.\*",
        ),
        (
            'train.optimizer.weight_decay_multipliers={"decoder.*": 0.1}',
            r"weight_decay_multipliers: 'decoder\.\*' matches no parameter; the model has",
        ),
        (
            'train.optimizer.weight_decay_multipliers={"*.bias": 0.1}',
            r"'\*\.bias' matches no parameter that has weight decay",
        ),
    ],
)
def test_patterns_without_effect_are_refused(override, message, model, parallel):
    with pytest.raises(ConfigError, match=message):
        multipliers([model], make_config(override), parallel)


def test_the_last_matching_pattern_of_each_kind_wins(model, parallel):
    factors = multipliers([model], make_config(*PATTERNS), parallel)
    assert factors["vision_projection.mlp.linear_fc1.weight"] == Multiplier(0.5, 1.0)
    assert factors["vision_projection.mlp.linear_fc2.weight"] == Multiplier(0.1, 3.0)
    assert factors["language_model.decoder.layers.0.mlp.linear_fc2.weight"] == Multiplier(0.1, 0.5)
    assert factors["language_model.embedding.word_embeddings.weight"] == Multiplier(1.0, 0.0)
    assert factors["vision_model.decoder.layers.0.mlp.linear_fc1.weight"] == Multiplier()


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


def test_module_table_has_a_row_per_setting(model, parallel):
    config = make_config(*PATTERNS)
    table = module_table([model], multipliers([model], config, parallel), parallel)
    found = {(row.name, row.multiplier) for row in table}
    assert found == {
        ("vision_model", Multiplier()),
        ("vision_model", Multiplier(0.1, 3.0)),
        ("vision_projection", Multiplier(0.5, 1.0)),
        ("vision_projection", Multiplier(0.1, 3.0)),
        ("language_model.embedding", Multiplier(1.0, 0.0)),
        ("language_model.decoder", Multiplier(1.0, 0.5)),
        ("language_model.decoder", Multiplier(0.1, 0.5)),
        ("language_model.output_layer", Multiplier()),
    }
    assert sum(row.num_parameters for row in table) == sum(p.numel() for p in model.parameters())

    # Where nothing trains, factors make no rows.
    frozen = make_config(*PATTERNS, "stage.freeze=[vision_model.*,'*.linear_fc2.*']")
    freeze([model], frozen, parallel)
    table = module_table([model], multipliers([model], frozen, parallel), parallel)
    assert [(row.name, row.multiplier) for row in table] == [
        ("vision_model", Multiplier()),
        ("vision_projection", Multiplier(0.5, 1.0)),
        ("language_model.embedding", Multiplier(1.0, 0.0)),
        ("language_model.decoder", Multiplier(1.0, 0.5)),
        ("language_model.output_layer", Multiplier()),
    ]
    assert sum(row.num_parameters for row in table) == sum(p.numel() for p in model.parameters())


def restored(saved, config, model, parallel):
    """A new optimizer that `saved` was loaded into, and its scheduler at the same step."""
    from nvlm.train.checkpoint import load_training_state

    factors = multipliers([model], config, parallel)
    chunks = wrap_data_parallel([model], parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)
    load_training_state(saved, chunks, optimizer, scheduler, parallel)
    return optimizer, scheduler


def test_a_checkpoint_keeps_groups_apart_and_takes_new_rates(model, parallel, tmp_path):
    from nvlm.model.nvlm_d import build_model
    from nvlm.train.checkpoint import save_training_state

    config = make_config(*PATTERNS, f"run.dir={tmp_path}")
    factors = multipliers([model], config, parallel)
    chunks = wrap_data_parallel([model], parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)
    scheduler.step(increment=3)
    for parameter in model.parameters():
        parameter.main_grad.fill_(1e-3)
    optimizer.step()
    progress = {"step": 3, "counters": {}, "data_state": {}}
    saved = save_training_state(config, chunks, optimizer, scheduler, progress, parallel)
    before = {
        name: (group_of(optimizer, p)["lr"], group_of(optimizer, p)["weight_decay"])
        for name, p in named_parameters([model])
    }

    again = build_model(config, parallel)
    optimizer, _ = restored(saved, config, again, parallel)
    for name, parameter in named_parameters([again]):
        group = group_of(optimizer, parameter)
        assert (group["lr"], group["weight_decay"]) == before[name], name
        assert group["step"] == 1

    # A resumed run may be given other rates: they hold, whatever the checkpoint's groups say.
    other = make_config(*PATTERNS, f"train.optimizer.lr={2 * LR}", "train.optimizer.beta2=0.5")
    again = build_model(other, parallel)
    optimizer, scheduler = restored(saved, other, again, parallel)
    parameter = again.vision_projection.mlp.linear_fc1.weight
    group = group_of(optimizer, parameter)
    assert group["max_lr"] == LR  # twice the rate, half by pattern
    assert group["lr"] == pytest.approx(learning_rate(scheduler, other) / 2)
    assert group["betas"] == (0.9, 0.5)
