"""Freezing and learning rates by name pattern, on the real model and optimizer."""

from __future__ import annotations

import pytest

from nvlm.config import load_config
from nvlm.errors import ConfigError
from nvlm.parallel.groups import initialize, shut_down
from nvlm.train.optim import build_optimizer, build_scheduler, learning_rate, wrap_data_parallel
from nvlm.train.stages import freeze, learning_rate_multipliers, module_table


def make_config(*overrides: str):
    sizes = ["model.vision.num_layers=1", "model.language.num_layers=1", "train.precision=fp32"]
    return load_config("configs/run/tiny/sft.yaml", [*sizes, *overrides])


@pytest.fixture(scope="module")
def parallel():
    yield initialize(make_config(), world_size=1)
    shut_down()


@pytest.fixture
def model(parallel):
    from nvlm.model.initialize import initialize_weights
    from nvlm.model.nvlm_d import build_model

    model = build_model(make_config(), parallel)
    initialize_weights(model, make_config())
    return model


def test_freeze_leaves_the_rest_trainable(model, parallel):
    freeze(model, make_config("stage.freeze=[vision_model.*,'*.word_embeddings.*']"), parallel)
    for name, parameter in model.named_parameters():
        frozen = name.startswith("vision_model.") or "word_embeddings" in name
        assert parameter.requires_grad is not frozen, name
    rows = {row.name: row for row in module_table(model, {}, parallel)}
    assert rows["vision_model"].num_trainable == rows["language_model.embedding"].num_trainable == 0
    assert rows["vision_projection"].num_trainable == rows["vision_projection"].num_parameters
    assert sum(row.num_parameters for row in rows.values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_nothing_left_to_train(model, parallel):
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freeze(model, make_config("stage.freeze=['*']"), parallel)


def test_learning_rates_follow_patterns_and_schedule(model, parallel):
    config = make_config(
        'train.optimizer.lr_multipliers={"vision_projection.*": 0.5, "*.linear_fc2.weight": 0.1}',
        "train.optimizer.lr=1e-3",
        "train.optimizer.min_lr=1e-4",
        "train.steps=20",
        "train.schedule.warmup_steps=4",
    )
    freeze(model, config, parallel)
    multipliers = learning_rate_multipliers(model, config, parallel)
    # The later pattern wins where two match.
    assert multipliers["vision_projection.mlp.linear_fc2.weight"] == 0.1
    assert multipliers["vision_projection.mlp.linear_fc1.weight"] == 0.5
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wrapped = wrap_data_parallel(model, parallel)
    optimizer = build_optimizer(wrapped, config, multipliers, parallel)
    scheduler = build_scheduler(optimizer, config)

    rates = []
    for _ in range(20):
        scheduler.step(increment=1)
        rates.append(learning_rate(scheduler, config))
        for group in optimizer.param_groups:
            factor = group["max_lr"] / 1e-3
            # The floor is scaled with the peak, so the whole curve is.
            assert group["lr"] == pytest.approx(rates[-1] * factor)
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[-1] == pytest.approx(1e-4)
    assert rates[3:] == sorted(rates[3:], reverse=True)

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable
    for parameter in trainable:
        name = names[id(parameter)]
        group_index, _ = _group_of(optimizer, wrapped, parameter)
        group = optimizer.param_groups[group_index]
        assert group["max_lr"] == pytest.approx(1e-3 * multipliers.get(name, 1.0)), name
        # Vectors have no weight decay.
        assert (group["wd_mult"] == 0.0) == (parameter.ndim == 1 or name.endswith(".bias")), name


def _group_of(optimizer, wrapped, parameter):
    """Where Megatron-core put a parameter: (group, place in the group)."""
    inner = getattr(optimizer, "chained_optimizers", [optimizer])[0]
    return inner.model_param_group_index_map[parameter]
