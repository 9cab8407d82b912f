"""The table of parameters against the model that Megatron-core builds, name by name."""

from __future__ import annotations

import pytest
from helpers import small_model, variants
from helpers.paths import REPOSITORY

from nvlm.checkpoint_shares import sharded_tensors
from nvlm.config import load_config
from nvlm.convert.rules import num_parameters
from nvlm.convert.tables.nvlm_d import export_rules
from nvlm.model.nvlm_d import build_model
from nvlm.model.parts.initialize import initialize_weights
from nvlm.sizes.parameters import (
    COMPONENTS,
    component_parameters,
    num_zero_parameters,
    parameter_table,
    parameters_by_key,
    parameters_by_name,
)

ALL = variants.VISION | variants.LANGUAGE


@pytest.mark.parametrize("overrides", ALL.values(), ids=ALL)
def test_names_and_shapes_are_those_of_the_built_model(parallel, overrides):
    config = small_model.small_config(*overrides)
    built = build_model(config, parallel)
    named = parameters_by_name(config.model)
    assert {name: tuple(parameter.shape) for name, parameter in built.named_parameters()} == {
        name: row.shape for name, row in named.items()
    }
    # Checkpoints: stacked keys, the number of layers first.
    keys = parameters_by_key(config.model)
    stored = {}
    for shard in sharded_tensors(built.sharded_state_dict()):
        num_layers = shard.global_shape[0] if shard.prepend_axis_num else None
        stored[shard.key] = (num_layers, tuple(shard.global_shape[shard.prepend_axis_num :]))
    assert stored == {key: (row.num_layers, row.shape) for key, row in keys.items()}


@pytest.mark.parametrize("overrides", variants.VISION.values(), ids=variants.VISION)
def test_what_parameters_begin_as_is_zero_in_zero_heads_alone(parallel, overrides):
    config = small_model.small_config(*overrides)
    built = build_model(config, parallel)
    initialize_weights(built, config)
    num_zero = 0
    for name, parameter in built.vision_model.named_parameters():
        row = parameters_by_name(config.model)[f"vision_model.{name}"]
        if row.zero_heads is not None:
            assert not row.zero_heads.of(parameter).any(), name
            num_zero += row.zero_heads.of(parameter).numel()
            if not name.endswith("bias"):
                assert int((parameter == 0).sum()) == row.zero_heads.of(parameter).numel(), name
    assert num_zero == num_zero_parameters(config.model)


def test_full_size_has_the_released_number_of_parameters():
    model = load_config(REPOSITORY / "configs/run/nvlm_d_72b/sft.yaml").model
    assert sum(row.num_parameters for row in parameter_table(model)) == 79_379_593_344
    assert sum(row.size for row in parameters_by_name(model).values()) == 79_379_593_344
    assert num_parameters(export_rules(model)) == 79_379_593_344
    by_component = {
        name: sum(row.num_parameters for row in component_parameters(model, name))
        for name in COMPONENTS
    }
    assert list(by_component.values()) == [6_052_672_640, 620_717_056, 72_706_203_648]
