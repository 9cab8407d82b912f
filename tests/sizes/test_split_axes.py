"""How tensors are split over tensor-parallel ranks: the table against Megatron-core's own marks."""

from __future__ import annotations

import pytest
from helpers import small_model, variants

from nvlm.model.nvlm_d import build_model
from nvlm.model.parts.names import named_parameters
from nvlm.model.placement import split_axis
from nvlm.parallel.stand_in import stand_in
from nvlm.platform.meta import OnMetaDevice
from nvlm.sizes.parameters import parameters_by_name

ALL = variants.VISION | variants.LANGUAGE
# Six heads in place of five and no zero ones: two ranks share them.
EVEN_HEADS = ["model.vision.hidden_size=192", "model.vision.num_attention_heads=6"]
EVEN_HEADS.append("model.vision.num_stored_attention_heads=6")


@pytest.mark.parametrize("overrides", ALL.values(), ids=ALL)
def test_split_axes_are_those_of_the_built_model(overrides):
    even = EVEN_HEADS if variants.NO_ZERO_HEADS[0] in overrides else []
    config = small_model.small_config(*overrides, *even, "parallel.tensor=2")
    with stand_in(config, 0) as parallel, OnMetaDevice():
        built = {
            name: (tuple(parameter.shape), split_axis(parameter, tensor_size=2))
            for name, parameter in named_parameters([build_model(config, parallel)])
        }
    assert built == {
        name: (row.local_shape(2), row.split_axis)
        for name, row in parameters_by_name(config.model).items()
    }
    assert {axis for _, axis in built.values()} == {None, 0, 1}
