"""Sections of several kinds: which one is read, what a change of kind keeps, what messages say."""

from __future__ import annotations

import pytest

from nvlm.config import load_config
from nvlm.config.compose import validate
from nvlm.config.connectors.linear import LinearConfig
from nvlm.config.connectors.mlp import MLPConfig
from nvlm.errors import ConfigError


def test_without_the_key_it_is_the_first_kind():
    connector = load_config("tiny/sft").model.connector
    assert isinstance(connector, MLPConfig) and connector.kind == "mlp"


def test_another_kind_begins_anew():
    """The width of the base file's MLP would be an unknown key of a linear."""
    overrides = ["model.connector.kind=linear", "model.connector.init_std=0.5"]
    connector = load_config("tiny/sft", overrides).model.connector
    assert connector == LinearConfig(init_std=0.5)
    same = load_config("tiny/sft", ["model.connector.kind=mlp"]).model.connector
    assert same == load_config("tiny/sft").model.connector


def test_tokens_of_a_tile_follow():
    numbers = {
        factor: load_config(
            "tiny/sft",
            [f"model.connector.pixel_shuffle={factor}", "stage.sequence_length=2048"],
        ).model.num_tokens_per_tile
        for factor in (1, 2, 4)
    }
    assert numbers[2] * 4 == numbers[1] and numbers[4] * 4 == numbers[2]


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.connector.kind=conv", "model.connector.kind: must be one of mlp, .*found 'conv'"),
        ("model.connector.ffn_size=3", "unknown key.*did you mean 'model.connector.ffn_hidden_si"),
        (
            "model.connector={kind: linear, ffn_hidden_size: 3}",
            "unknown key 'model.connector.ffn_hidden_size'",
        ),
        ("model.connector.pixel_shuffle=3", "must be 1 .*, 2 or 4, found 3"),
        ("model.connector=4", "model.connector: must be a mapping of settings, .* found 4"),
        ("model.projector.init_std=1", "projector is the earlier name of connector"),
    ],
)
def test_what_is_wrong_is_said(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("tiny/sft", [override])


def test_configurations_of_earlier_checkpoints_are_read():
    values = load_config("tiny/sft").model_dump()
    values["model"]["projector"] = {"ffn_hidden_size": 512}
    del values["model"]["connector"]
    assert validate(values, "saved").model == load_config("tiny/sft").model
