"""Why what is written is copied to a place of ours: plain Megatron-core does not always copy."""

from __future__ import annotations

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from nvlm.megatron.staged_state import Stage, bad_tensors


def state_of(values: torch.Tensor, copy: int = 0) -> dict:
    tensor = ShardedTensor.from_rank_offsets("w", values, replica_id=copy)
    return {"w": tensor, "o": ShardedObject("o", {"lr": [1]}, (1,), (0,)), "n": {"step": [3]}}


def test_plain_copies_of_whole_tensors_are_the_tensors(parallel, tmp_path):
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

    values = torch.arange(6.0)
    strategy = TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1)
    request = strategy.async_save({"w": state_of(values)["w"]}, tmp_path)
    (bucket,) = request.preload_fn()
    ((_, staged),) = bucket[2][1]
    assert staged.data_ptr() == values.data_ptr(), "Megatron-core copies now: see if it is enough"


def test_later_changes_do_not_reach_what_was_copied():
    stage = Stage(lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8))
    values = torch.arange(6.0)
    state = state_of(values)
    placed, copy = stage.place(state)
    copy()
    values.zero_()
    state["o"].data["lr"][0] = state["n"]["step"][0] = 9
    assert placed["w"].data.tolist() == list(range(6))
    assert placed["o"].data == {"lr": [1]} and placed["n"] == {"step": [3]}
    # The place is used again, and what another rank writes is left where it is.
    again, copy = stage.place(state_of(values.to(torch.bfloat16)))
    copy()
    assert again["w"].data.untyped_storage().data_ptr() == (
        placed["w"].data.untyped_storage().data_ptr()
    )
    other, copy = stage.place(state_of(values, copy=1))
    copy()
    assert other["w"].data.data_ptr() == values.data_ptr()


def test_only_what_is_written_is_looked_through():
    values = torch.tensor([1.0, torch.inf])
    assert bad_tensors(state_of(values)) == ["w"]
    assert bad_tensors(state_of(values, copy=1)) == []
    assert bad_tensors(state_of(torch.tensor([2**31]))) == []
