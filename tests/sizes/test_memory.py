"""Bytes reckoned from the table against the tensors that Megatron-core allocates."""

from __future__ import annotations

import pytest
import torch
from helpers import adapter_steps, small_model

from nvlm.batch import StepBatch
from nvlm.sizes.memory import MemoryBytes, stage_memory
from nvlm.train.freezing import freeze, multipliers
from nvlm.train.optim import build_optimizer, build_scheduler, wrap_data_parallel
from nvlm.train.step import train_step

FROZEN = {
    "nothing": "stage.freeze=[]",
    "the encoder": "stage.freeze=['vision_model.*']",
    "all but the projector": "stage.freeze=['vision_model.*','language_model.*']",
    "all but adapters": adapter_steps.DORA,
}


def num_bytes(tensors) -> int:
    """Of the memory behind the tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_of_a_process_that_trains(parallel, frozen: str, precision: str):
    config = small_model.small_config(frozen, f"train.precision={precision}")
    bare = small_model.build_chunks(config, parallel)
    freeze(bare, config, parallel)
    chunks = wrap_data_parallel(bare, parallel)
    optimizer = build_optimizer(chunks, config, multipliers(bare, config, parallel), parallel)
    build_scheduler(optimizer, config).step(increment=1)
    batches = [small_model.batch(config, 1, [60, 20], num_tiles=2)]
    train_step(chunks, optimizer, StepBatch(batches, [], {}), parallel, 1)

    parameters = list(bare[0].parameters())
    (buffer,) = chunks[0].buffers
    adam = optimizer.chained_optimizers[0].optimizer
    state = [v for values in adam.state.values() for v in values.values() if torch.is_tensor(v)]
    if precision == "bf16":
        state += [p for group in adam.param_groups for p in group["params"]]
    assert stage_memory(config, 0, data_parallel_size=1) == MemoryBytes(
        parameters=num_bytes(parameters),
        gradients=num_bytes([buffer.grad_data]),
        optimizer=sum(tensor.numel() * tensor.element_size() for tensor in state),
    )


def test_more_data_ranks_share_the_optimizer_state():
    config = small_model.small_config("train.precision=bf16", "train.global_batch_size=48")
    alone = stage_memory(config, 0, data_parallel_size=1)
    shared = stage_memory(config, 0, data_parallel_size=3)
    assert alone.gradients <= shared.gradients < alone.gradients + 3 * 128 * 4
    # A third of the buffer, whose gaps are smaller than 64 numbers per tensor.
    assert alone.optimizer / 3 <= shared.optimizer <= alone.optimizer / 3 * 1.01
