"""Freezing, learning rates and weight decay by name pattern, on the real model and optimizer."""

from __future__ import annotations

import pytest
from helpers.rates import PATTERNS, make_config

from nvlm.errors import ConfigError
from nvlm.train.freezing import Multiplier, freeze, module_table, multipliers


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
