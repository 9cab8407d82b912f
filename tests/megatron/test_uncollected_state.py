"""Why nothing is collected while the optimizer is asked for its state: Megatron-core does."""

from __future__ import annotations

import gc

from helpers import small_model
from helpers.optimizer_parts import sharded_state, take_step, with_optimizer

from nvlm.megatron.uncollected_state import nothing_collected


def test_plain_states_collect_all_garbage(parallel):
    model, optimizer = with_optimizer(small_model.small_config(), parallel)
    take_step(model, optimizer)
    collected = []

    def note(phase: str, info: dict) -> None:
        if phase == "start" and info["generation"] == 2:
            collected.append(info)

    gc.disable()
    gc.callbacks.append(note)
    try:
        sharded_state(model, optimizer)
        assert collected, "Megatron-core collects no garbage any more: the correction can go"
        collected.clear()
        with nothing_collected():
            sharded_state(model, optimizer)
        assert not collected
        gc.collect()
        assert collected
    finally:
        gc.callbacks.remove(note)
        gc.enable()
