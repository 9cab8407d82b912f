"""Why `_extra_state` is left out: plain layers list it, though there is nothing in it."""

from __future__ import annotations

import torch
from helpers import small_model
from megatron.core.transformer.module import MegatronModule

from nvlm.megatron.extra_state import is_extra_state


def test_local_layers_list_it(parallel):
    model = small_model.build(small_model.small_config(), parallel)
    plain = MegatronModule.sharded_state_dict(model)
    extra = {key for key in plain if is_extra_state(key)}
    assert extra and all(plain[key].data is None for key in extra)
    assert model.sharded_state_dict().keys() == plain.keys() - extra


def test_weights_load_with_it_and_without(parallel):
    model = small_model.build(small_model.small_config(), parallel)
    state = {k: v for k, v in model.state_dict().items() if not is_extra_state(k)}
    assert model.load_state_dict(state).missing_keys == []
    scaled = {"language_model.output_layer._extra_state": torch.zeros(1)}
    assert model.load_state_dict({**state, **scaled}).unexpected_keys == []
